"""A thread that is interrupted while it removes the tables that hide those of a projection."""

from collections.abc import Iterator

import pytest
from helpers.interrupts import InterruptAtCall
from sqlalchemy import URL, func, select

from peon.persistence import Database
from peon.persistence.projections.shadow_tables import shadowed
from peon.persistence.schema import projection_positions

CALLS_BETWEEN = 3
"""Every third call, so that the proof takes seconds."""


@pytest.fixture
def database(url: URL, migrated: None) -> Iterator[Database]:
    with Database.open(url=url) as database:
        yield database


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_an_interrupted_removal_leaves_no_table_hidden(database: Database) -> None:
    number_of_rows = select(func.count()).select_from(projection_positions)
    calls = 1
    while True:
        with database.engine.connect() as connection:
            rows = connection.scalar(number_of_rows)
            assert rows
            hidden = shadowed(connection, [projection_positions])
            hidden.__enter__()
            connection.commit()  # as the steps of a rebuild do on SQLite
            with InterruptAtCall(calls) as interrupt:
                hidden.__exit__(None, None, None)
        with database.engine.connect() as connection:
            assert connection.scalar(number_of_rows) == rows, f"interrupted at call {calls}"
        if not interrupt.raised:
            break
        calls += CALLS_BETWEEN
    assert calls > CALLS_BETWEEN
