"""A connection of the caller is accepted if it leads to the store's database, by any address."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy
from helpers.postgresql_schemas import MigratedSchemas, in_schema
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase

RENAMED = ProjectRenamed(project_id=UUID(int=1), name="tides")


@pytest.fixture
def database(migrated_lasting_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        yield database


@pytest.fixture
def same_url(database: Database, tmp_path: Path) -> URL:
    """Returns another address of the same database."""
    url = database.engine.url
    if database.engine.dialect.name == "postgresql":
        return url.set(host="localhost")
    (tmp_path / "link.db").symlink_to(str(url.database))
    return url.set(database=str(tmp_path / "link.db"))


@pytest.fixture
def other_url(
    database: Database, postgresql_server: URL, migrated_schemas: MigratedSchemas, statements_for_postgresql: str
) -> Iterator[URL]:
    """Returns the most similar address that leads to another log."""
    url = database.engine.url
    if database.engine.dialect.name == "postgresql":
        schema = migrated_schemas.take(statements_for_postgresql)
        yield in_schema(postgresql_server, schema)
        migrated_schemas.give_back(schema)
    else:
        other = url.set(database=f"{url.database}2")
        Database.open(url=other).close()
        yield other


@contextmanager
def engine_of(url: URL) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(url)
    yield engine
    engine.dispose()


def test_a_connection_to_another_log_is_refused_by_every_write(database: Database, other_url: URL) -> None:
    subscription = database.events.durable_subscription("mailer")
    with Database.open(url=other_url, maintain_projections=False) as other, other.engine.connect() as connection:
        for _ in range(2):
            with pytest.raises(ValueError, match="of another database"):
                database.events.append_all([RENAMED], connection=connection)
        with pytest.raises(ValueError, match="of another database"):
            database.settings.set("a", 1, connection=connection)
        with pytest.raises(ValueError, match="of another database"):
            subscription.save_position(connection=connection)
        connection.commit()
        assert other.events.last_sequence() == database.events.last_sequence() == 0
        assert other.settings.all() == {}
    subscription.close()


def test_a_connection_to_the_same_database_by_another_address_is_accepted(database: Database, same_url: URL) -> None:
    with engine_of(same_url) as engine, engine.begin() as connection:
        stored = database.events.append_all([RENAMED], connection=connection)
        database.settings.set("a", 1, connection=connection)

    assert database.events.replay_all() == stored
    assert database.settings.all() == {"a": 1}


def test_each_foreign_pool_is_queried_once_and_the_stores_own_pool_never(database: Database, same_url: URL) -> None:
    asked: list[str] = []

    def note(_: Connection, __: object, statement: str, *___: object) -> None:
        if "pg_postmaster_start_time" in statement or "database_list" in statement:
            asked.append(statement)

    with engine_of(same_url) as engine:
        for pool_of in (engine, database.engine):
            event.listen(pool_of, "before_cursor_execute", note)
        with database.engine.begin() as connection:
            database.events.append_all([RENAMED], connection=connection)
        assert asked == []
        for options in ({}, {"logging_token": "a"}, {"logging_token": "b"}):
            with engine.execution_options(**options).begin() as connection:
                database.events.append_all([RENAMED], connection=connection)
        assert len(asked) == 2

    assert database.events.last_sequence() == 4


def test_a_refused_connection_remains_usable(database: Database, postgresql_url: URL) -> None:
    """Its database has no log. A failed query would abort the transaction, so the query must not fail."""
    with engine_of(postgresql_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE mine (n INTEGER)"))
            with pytest.raises(ValueError, match="of another database"):
                database.events.append_all([RENAMED], connection=connection)
            connection.execute(text("INSERT INTO mine VALUES (1)"))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT n FROM mine")) == 1


def test_a_connection_that_cannot_be_queried_is_unavailable(migrated_postgresql_url: URL) -> None:
    with (
        Database.open(url=migrated_postgresql_url, maintain_projections=False) as database,
        engine_of(migrated_postgresql_url) as engine,
        pytest.raises(StoreUnavailable, match="terminating connection"),
        engine.connect() as connection,
    ):
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with database.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        database.events.append_all([RENAMED], connection=connection)


def test_connections_of_an_event_loop_are_accepted_and_refused_alike(
    migrated_lasting_url: URL, other_url: URL, same_url: URL
) -> None:
    def asynchronous(url: URL) -> URL:
        return url.set(drivername={"sqlite": "sqlite+aiosqlite"}.get(url.drivername, url.drivername))

    async def scenario() -> None:
        other, same = (create_async_engine(asynchronous(url)) for url in (other_url, same_url))
        async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
            async with other.connect() as connection:
                with pytest.raises(ValueError, match="of another database"):
                    await database.events.append_all([RENAMED], connection=connection)
            async with same.begin() as connection:
                await database.events.append_all([RENAMED], connection=connection)
            assert await database.events.last_sequence() == 1
        await other.dispose()
        await same.dispose()

    asyncio.run(scenario())
