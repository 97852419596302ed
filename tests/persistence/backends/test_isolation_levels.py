"""Isolation levels: AUTOCOMMIT works for the application's own statements, and Peon refuses to write in it."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import URL, Connection, Engine, text

from peon.orchestration import OrchestrationEvent, ProjectCreated
from peon.persistence import Database, EventStore, ReadModel, SettingsStore, create_engine
from peon.persistence.asynchronous import AsyncDatabase

SET_IN_SQL = text("INSERT INTO settings (key, value) VALUES (:key, '1')")


def created() -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name="Tides", path="/tides")


def in_autocommit(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


@pytest.fixture(params=["of a connection", "of an engine"])
def autocommit(request: pytest.FixtureRequest) -> Callable[[Engine], Connection]:
    if request.param == "of a connection":
        return in_autocommit
    return lambda engine: engine.execution_options(isolation_level="AUTOCOMMIT").connect()


def test_a_statement_in_autocommit_is_stored_at_once(
    database: Database, autocommit: Callable[[Engine], Connection]
) -> None:
    with autocommit(database.engine) as connection:
        connection.execute(SET_IN_SQL, {"key": "first"})
        connection.execute(SET_IN_SQL, {"key": "rolled back, which changes nothing"})
        connection.rollback()
    assert set(database.settings.all()) == {"first", "rolled back, which changes nothing"}


def test_autocommit_ends_when_the_connection_is_returned(
    database: Database, autocommit: Callable[[Engine], Connection]
) -> None:
    for _ in range(3):
        with autocommit(database.engine) as connection:
            connection.execute(text("SELECT 1"))
        with database.engine.connect() as connection:
            connection.execute(SET_IN_SQL, {"key": "never"})
            connection.rollback()
        database.events.append_all([created()])
        database.settings.set("kept", 1)
    assert database.settings.all() == {"kept": 1}
    assert database.events.last_sequence() == 3


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", "READ UNCOMMITTED"])
def test_a_level_does_not_change_the_mode_of_pooled_connections(migrated_sqlite_url: URL, level: str) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        with database.engine.connect().execution_options(isolation_level=level) as connection:
            connection.execute(text("SELECT 1"))
        with closing(database.engine.raw_connection()) as returned:
            driver: Any = returned.driver_connection
            assert driver.isolation_level is None, "the driver begins transactions by itself"
            driver.execute("INSERT INTO settings (key, value) VALUES ('a', '1')")
            assert not driver.in_transaction
            assert driver.execute("PRAGMA read_uncommitted").fetchone() == (0,)


@pytest.mark.parametrize("level", ["SERIALIZABLE", "READ UNCOMMITTED"])
def test_other_levels_on_sqlite_take_the_write_lock_and_roll_back(migrated_sqlite_url: URL, level: str) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        other = sqlite3.connect(str(migrated_sqlite_url.database), timeout=0, isolation_level=None)
        with closing(other), database.engine.connect().execution_options(isolation_level=level) as connection:
            connection.execute(text("SELECT 1"))
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            database.events.append_all([created()], connection=connection)
            connection.rollback()
            database.events.append_all([created()], connection=connection)
            database.settings.set("kept", 1, connection=connection)
            connection.commit()
        assert database.events.last_sequence() == 1
        assert database.settings.all() == {"kept": 1}


def test_a_read_in_autocommit_takes_no_write_lock_and_vacuum_works(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, in_autocommit(database.engine) as connection:
        connection.execute(text("SELECT 1"))
        with closing(sqlite3.connect(str(migrated_sqlite_url.database), timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
        connection.execute(text("VACUUM"))


def test_a_statement_in_autocommit_waits_for_a_writer(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, ThreadPoolExecutor(1) as pool:
        database.settings.set("before", 1)  # the connection's own waiting was switched off by this BEGIN
        other = sqlite3.connect(str(migrated_sqlite_url.database), isolation_level=None)
        with in_autocommit(database.engine) as connection, closing(other):
            other.execute("BEGIN IMMEDIATE")
            writing = pool.submit(connection.execute, SET_IN_SQL, {"key": "after"})
            with pytest.raises(TimeoutError):
                writing.result(timeout=0.2)
            other.execute("COMMIT")
            writing.result(timeout=10)


def writes(database: Database) -> dict[str, Callable[[Connection], object]]:
    subscription = database.events.durable_subscription("mail")
    return {
        "append": lambda own: database.events.append_all([created()], connection=own),
        "set": lambda own: database.settings.set("a", 1, connection=own),
        "delete": lambda own: database.settings.delete("a", connection=own),
        "save_position": lambda own: subscription.save_position(connection=own),
    }


@pytest.mark.parametrize("write", ["append", "set", "delete", "save_position"])
def test_a_connection_in_autocommit_is_refused(
    lasting_database: Database, autocommit: Callable[[Engine], Connection], write: str
) -> None:
    database = lasting_database
    perform = writes(database)[write]
    with autocommit(database.engine) as connection:
        with pytest.raises(ValueError, match="AUTOCOMMIT"):
            perform(connection)
        with connection.begin(), pytest.raises(ValueError, match="AUTOCOMMIT"):
            perform(connection)
    assert database.events.last_sequence() == 0
    assert database.settings.all() == {}


def test_a_connection_of_an_engine_created_in_autocommit_is_refused(lasting_database: Database) -> None:
    foreign = sqlalchemy.create_engine(lasting_database.engine.url, isolation_level="AUTOCOMMIT")
    with foreign.connect() as connection, pytest.raises(ValueError, match="AUTOCOMMIT"):
        lasting_database.events.append_all([created()], connection=connection)
    foreign.dispose()


@pytest.mark.parametrize("write", ["append", "set", "save_position"])
def test_a_connection_in_autocommit_is_refused_in_an_event_loop(migrated_lasting_url: URL, write: str) -> None:
    async def refused() -> None:
        async with await AsyncDatabase.open(url=migrated_lasting_url) as database:
            subscription = database.events.durable_subscription("mail")
            async with database.engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                calls: dict[str, Any] = {
                    "append": lambda: database.events.append_all([created()], connection=connection),
                    "set": lambda: database.settings.set("a", 1, connection=connection),
                    "save_position": lambda: subscription.save_position(connection=connection),
                }
                with pytest.raises(ValueError, match="AUTOCOMMIT"):
                    await calls[write]()
                await connection.execute(SET_IN_SQL, {"key": "stored"})
            async with database.engine.connect() as connection:
                await connection.execute(SET_IN_SQL, {"key": "never"})
            assert await database.settings.all() == {"stored": 1}
            assert await database.events.last_sequence() == 0

    asyncio.run(refused())


def test_a_database_on_an_engine_in_autocommit_keeps_its_transactions(migrated_sqlite_url: URL) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    whole = create_engine(migrated_sqlite_url)
    engine = whole.execution_options(isolation_level="AUTOCOMMIT")
    events: list[OrchestrationEvent] = [created(), created()]
    with pytest.raises(RuntimeError):
        EventStore(engine, on_append=refuse).append_all(events)
    database = Database(engine)
    assert database.events.last_sequence() == 0
    database.events.append_all(events)
    database.projections.rebuild()
    assert database.projections.verify() == []
    assert len(database.read_model.projects()) == 2
    database.settings.set("a", 1)
    with database.read_transaction() as connection:
        before = connection.scalar(text("SELECT count(*) FROM settings"))
        SettingsStore(whole).set("b", 1)
        assert connection.scalar(text("SELECT count(*) FROM settings")) == before
    database.close()


@pytest.mark.parametrize("part", [EventStore, SettingsStore, Database, ReadModel])
def test_on_postgresql_an_engine_in_autocommit_is_refused(
    postgresql_url: URL, part: Callable[[Engine], object]
) -> None:
    engine = create_engine(postgresql_url)
    with pytest.raises(ValueError, match="derived from"):
        part(engine.execution_options(isolation_level="AUTOCOMMIT"))


@pytest.fixture
def lasting_database(migrated_lasting_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_lasting_url) as database:
        yield database


def test_an_engine_without_peons_database_commits_each_statement(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    with in_autocommit(engine) as connection:
        connection.execute(text("CREATE TABLE tides (height INTEGER)"))
        connection.execute(text("INSERT INTO tides VALUES (1)"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tides")) == 1
    engine.dispose()
