"""A thread that is interrupted at any moment of an append, as by a signal handler that raises."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from helpers.interrupts import InterruptAtCall
from sqlalchemy import URL, Connection, select

from peon.orchestration import ProjectRenamed
from peon.persistence import Database


def append(store: Database) -> int:
    (stored,) = store.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="x")])
    return stored.sequence


@pytest.fixture
def database(url: URL, migrated: None) -> Iterator[Database]:
    with Database.open(url=url, maintain_projections=False) as database:
        yield database
        database.events.close()
        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("keeps_connection", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_next_append_succeeds_and_nothing_is_lost(database: Database, keeps_connection: bool) -> None:
    calls = last = 0
    while True:
        calls += 1
        if keeps_connection:
            last = append(database)
        else:
            database.events.close()  # the interrupted append takes a connection, and sets it up
        with InterruptAtCall(calls) as interrupt:
            append(database)
        if not interrupt.raised:
            break
        after = append(database)
        assert after in (last + 1, last + 2)
        last = after
    assert calls > 100
    assert [stored.sequence for stored in database.events.replay_all()] == [*range(1, last + 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("url", ["file", "memory"], indirect=True)
@pytest.mark.parametrize("end", [Connection.rollback, Connection.commit])
def test_an_append_succeeds_after_a_transaction_whose_end_was_interrupted(
    database: Database, end: Callable[[Connection], None]
) -> None:
    calls = 0
    while True:
        calls += 1
        with database.engine.connect() as connection:
            connection.execute(select(1))
            with InterruptAtCall(calls) as interrupt:
                end(connection)
        if not interrupt.raised:
            break
        assert append(database) == calls
    assert calls > 5
