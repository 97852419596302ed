"""How long calls wait for a lock, and what the error says."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from helpers.unavailable_databases import IMPATIENT, assert_sound, assert_works, fill, renamed, sqlite, unavailable
from sqlalchemy import URL, text

from peon.config import AppConfig, DatabaseConfig
from peon.persistence import (
    Database,
    create_engine,
)
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.migrations import migration_transaction


@contextmanager
def locked(path: Path, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(begin)
        yield other
        other.execute("ROLLBACK")


@contextmanager
def taking_seconds(at_least: float, at_most: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert at_least <= time.monotonic() - start < at_most


LOCKED = "it is locked by another connection: end the transaction that holds the lock"


def test_an_append_waits_for_a_lock_and_then_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(IMPATIENT, url=sqlite(path), maintain_projections=False) as database:
        before += database.events.append_all([renamed()])

        for _ in range(2):
            with locked(path), taking_seconds(0.3, 5), unavailable(sqlite(path), LOCKED):
                database.events.append_all([renamed(), renamed()])

            assert_works(database, before)
            before = database.events.replay_all()
    assert_sound(path)


def test_an_append_with_a_timeout_of_zero_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    config = AppConfig(database=DatabaseConfig(busy_timeout=0))
    with Database.open(config, url=sqlite(path), maintain_projections=False) as database:
        with locked(path), taking_seconds(0, 5), unavailable(sqlite(path), "database.busy_timeout"):
            database.events.append_all([renamed()])

        assert_works(database, before)


def test_a_lock_that_the_same_process_holds_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(IMPATIENT, url=sqlite(path), maintain_projections=False) as database:
        with database.engine.begin(), unavailable(sqlite(path), LOCKED):
            database.events.append_all([renamed()])

        assert_works(database, before)


def test_a_lock_blocks_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(url=sqlite(path), maintain_projections=False) as database, locked(path) as other:
        other.execute("INSERT INTO events (event_type, payload, stored_at) VALUES ('x', 'not committed', '')")

        with taking_seconds(0, 5):
            assert database.events.replay_all() == before
            assert database.events.last_sequence() == len(before)
            assert list(database.events.stream(after=1)) == before[1:]
            with Database.open(url=sqlite(path), maintain_projections=False) as second:
                assert second.events.replay_all() == before
            with Database.open(url=sqlite(path), migrate=False, maintain_projections=False) as third:
                assert third.events.replay_all() == before


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_lock_that_stops_a_migration_is_reported(tmp_path: Path, begin: str, mode: str) -> None:
    path = tmp_path / "peon.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")

    with locked(path, begin), taking_seconds(0.3, 5), unavailable(sqlite(path), LOCKED):
        Database.open(IMPATIENT, url=sqlite(path), maintain_projections=False)

    with Database.open(IMPATIENT, url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, [])


def test_an_append_that_waits_for_a_transaction_of_its_own_thread_names_the_remedy(migrated_lasting_url: URL) -> None:
    with Database.open(IMPATIENT, url=migrated_lasting_url, maintain_projections=False) as database:
        with database.engine.begin() as connection:
            before = database.events.append_all([renamed()], connection=connection)

            with (
                taking_seconds(0.3, 5),
                unavailable(database.engine.url, "pass your own transaction as connection=…, or"),
            ):
                database.events.append_all([renamed()])

        assert_works(database, before)


def test_threads_that_wait_for_a_forgotten_transaction_time_out_together(migrated_lasting_url: URL) -> None:
    with (
        Database.open(IMPATIENT, url=migrated_lasting_url, maintain_projections=False) as database,
        ThreadPoolExecutor(8) as pool,
    ):
        with database.engine.begin() as connection:
            before = database.events.append_all([renamed()], connection=connection)

            # One timeout for the first request, and one for the requests that arrived meanwhile.
            with taking_seconds(0.3, 2):
                appends = [pool.submit(database.events.append_all, [renamed()]) for _ in range(8)]
                for append in appends:
                    assert "database.busy_timeout" in str(append.exception(30))

        assert_works(database, before)


def test_tasks_of_an_event_loop_get_the_same_error(migrated_lasting_url: URL) -> None:
    async def append() -> None:
        async with await AsyncDatabase.open(
            IMPATIENT, url=migrated_lasting_url, maintain_projections=False
        ) as database:
            async with database.engine.begin() as connection:
                await database.events.append_all([renamed()], connection=connection)
                with taking_seconds(0.3, 5), unavailable(database.engine.url, "database.busy_timeout"):
                    await database.events.append_all([renamed()])
            assert len(await database.events.append_all([renamed()])) == 1

    asyncio.run(append())


def test_a_migration_that_waits_for_another_migration_times_out(lasting_url: URL) -> None:
    engine = create_engine(lasting_url)
    with migration_transaction(engine), taking_seconds(0.3, 5), unavailable(engine.url, "database.busy_timeout"):
        Database.open(IMPATIENT, url=lasting_url, maintain_projections=False)
    engine.dispose()

    # A long timeout: tests in other schemas of the server migrate at the same time, under the same lock.
    Database.open(url=lasting_url, maintain_projections=False).close()


def test_transactions_of_the_application_use_the_timeout_of_the_server(migrated_postgresql_url: URL) -> None:
    with Database.open(IMPATIENT, url=migrated_postgresql_url, maintain_projections=False) as database:
        database.events.append_all([renamed()])
        database.events.close()
        with database.engine.begin() as connection:  # the connection that has appended
            database.events.append_all([renamed()], connection=connection)
            assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_a_lock_on_a_table_of_a_server_is_reported(migrated_postgresql_url: URL) -> None:
    options = str(migrated_postgresql_url.query["options"])
    with Database.open(
        url=migrated_postgresql_url.update_query_dict({"options": f"{options} -clock_timeout=100"}),
        maintain_projections=False,
    ) as database:
        before = database.events.append_all([renamed()])
        url = database.engine.url
        with database.engine.begin() as other:
            other.execute(text("LOCK TABLE events IN EXCLUSIVE MODE"))

            with taking_seconds(0.1, 5), unavailable(url, LOCKED):  # Peon does not raise a lower limit of the server
                database.events.append_all([renamed()])
            assert database.events.replay_all() == before

        assert_works(database, before)
