"""Processes, threads and logging handlers open a database while it is migrated."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from helpers import migration_processes, processes
from helpers.migrated_databases import address, cut_to, file_of, names_in, populate, revision_of, rows_of, state_of
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent
from peon.persistence import Database, StoreUnavailable
from peon.persistence.migrations import revisions


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_processes_open_the_same_new_database(lasting_url: URL, count: int) -> None:
    barrier = processes.context.Barrier(count)

    codes = processes.exit_codes(migration_processes.open_and_append, [(barrier, address(lasting_url))] * count)

    assert codes == [0] * count
    with Database.open(url=lasting_url, maintain_projections=False) as database:
        assert [stored.sequence for stored in database.events.replay_all()] == list(range(1, count + 1))
    assert revision_of(lasting_url) == [revisions()[-1]]


def test_processes_open_the_same_new_database_with_every_default_isolation_level(postgresql_url: URL) -> None:
    options = rf"{postgresql_url.query['options']} -cdefault_transaction_isolation=repeatable\ read"
    url = address(postgresql_url.update_query_dict({"options": options}))
    barrier = processes.context.Barrier(4)

    assert processes.exit_codes(migration_processes.open_and_append, [(barrier, url)] * 4) == [0] * 4


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_processes_open_the_same_old_database(populated_url: URL, count: int) -> None:
    barrier = processes.context.Barrier(count)
    before = rows_of(populated_url)

    codes = processes.exit_codes(migration_processes.open_and_append, [(barrier, address(populated_url))] * count)

    assert codes == [0] * count
    after = cut_to(before, rows_of(populated_url))
    assert len(after["events"]) == len(before["events"]) + count
    assert {**after, "events": after["events"][:-count]} == before
    assert names_in(file_of(populated_url).parent) == ["peon.db", "peon.db.001_initial.backup"]
    copy = populated_url.set(database=f"{populated_url.database}.001_initial.backup")
    assert (rows_of(copy), revision_of(copy)) == (before, ["001_initial"])


def test_threads_open_different_new_databases_at_the_same_time(tmp_path: Path, an_event: OrchestrationEvent) -> None:
    barrier = threading.Barrier(8)

    def open_and_append(number: int) -> list[int]:
        barrier.wait(processes.PATIENCE)
        with Database.open(url=f"sqlite:///{tmp_path}/{number}/peon.db", maintain_projections=False) as database:
            return [stored.sequence for stored in database.events.append_all([an_event])]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_and_append, range(8))) == [[1]] * 8


def test_threads_open_the_same_new_database_at_the_same_time(lasting_url: URL, an_event: OrchestrationEvent) -> None:
    barrier = threading.Barrier(8)

    def open_and_append(_: int) -> int:
        barrier.wait(processes.PATIENCE)
        with Database.open(url=lasting_url, maintain_projections=False) as database:
            return database.events.append_all([an_event])[0].sequence

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(open_and_append, range(8))) == list(range(1, 9))


def test_a_process_that_was_forked_during_a_migration_opens_a_database(tmp_path: Path) -> None:
    url, url_of_child = (f"sqlite:///{tmp_path}/{name}.db" for name in ("parent", "child"))

    assert processes.run(migration_processes.fork_while_another_thread_migrates, url, url_of_child) == 0


def test_a_reader_of_the_old_database_continues_during_the_migration(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT * FROM events").fetchall()

        Database.open(url=populated_url, maintain_projections=False).close()

        assert reader.execute("SELECT * FROM events").fetchall() == before


def test_a_migration_waits_for_a_writer_no_longer_than_configured(populated_url: URL) -> None:
    path = file_of(populated_url)
    before = state_of(populated_url)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="locked"):
            Database.open(AppConfig(database={"busy_timeout": 0.05}), url=populated_url, maintain_projections=False)

    assert state_of(populated_url) == before
    assert names_in(path.parent) == ["peon.db"]


@pytest.mark.parametrize(("logger", "own"), rest_is_slow([("", True), ("alembic", False), ("peon", True)], first=1))
def test_a_logging_handler_that_opens_the_database_during_its_migration_gets_an_error(
    lasting_url: URL, tmp_path: Path, logger: str, own: bool
) -> None:
    """Alembic logs in the middle of the migration; the records of `peon` come before it and after it."""
    rows = populate(lasting_url, "001_initial", tmp_path)

    outcomes = processes.run(
        migration_processes.open_while_a_handler_opens, address(lasting_url), logger, address(lasting_url)
    )

    refused = [outcome for outcome in outcomes if "in the middle of a migration" in outcome]
    assert bool(refused) == (logger != "peon")
    assert [outcome for outcome in outcomes if outcome not in refused] == ["stored"] * 2 * own
    assert revision_of(lasting_url) == [revisions()[-1]]
    found = cut_to(rows, rows_of(lasting_url))
    assert {**found, "events": found["events"][: len(rows["events"])]} == rows


def test_a_logging_handler_may_open_another_database_that_is_up_to_date(populated_url: URL, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/log.db"
    Database.open(url=log, maintain_projections=False).close()

    outcomes = processes.run(migration_processes.open_while_a_handler_opens, address(populated_url), "alembic", log)

    assert outcomes == ["stored"] * len(outcomes) != []
    with Database.open(url=log, maintain_projections=False) as database:
        assert len(database.events.replay_all()) == len(outcomes)


def test_a_thread_of_a_logging_handler_waits_for_the_migration(lasting_url: URL) -> None:
    assert processes.run(migration_processes.open_while_a_thread_of_a_handler_opens, address(lasting_url)) == ["stored"]
    assert revision_of(lasting_url) == [revisions()[-1]]
