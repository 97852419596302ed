"""Settings of a PostgreSQL server: the store works with them, or says what it needs."""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from random import Random
from string import ascii_letters
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import (
    AppendCondition,
    Database,
    EventQuery,
    EventStore,
    PersistenceError,
    StoreUnavailable,
)
from peon.persistence.asynchronous import AsyncDatabase

POLISH = "zażółć"


def renamed(name: str = POLISH) -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


def execute(server: URL, *statements: str) -> None:
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


async def append_and_replay(url: URL) -> list[Any]:
    async with await AsyncDatabase.open(url=url, maintain_projections=False) as database:
        await database.events.append_all([renamed()])
        return await database.events.replay_all()


class TestEncodings:
    @pytest.fixture(params=["LATIN1", "SQL_ASCII", "UTF8"])
    def encoded_url(self, request: pytest.FixtureRequest, postgresql_server: URL) -> Iterator[URL]:
        """Returns the address of a database with this encoding."""
        name = f"test_{uuid4().hex}"
        execute(
            postgresql_server,
            f"CREATE DATABASE {name} ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        )
        yield postgresql_server.set(database=name)
        execute(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")

    @pytest.mark.parametrize("encoded_url", rest_is_slow(["LATIN1", "SQL_ASCII"], first=1), indirect=True)
    def test_a_database_in_another_encoding_is_refused(self, encoded_url: URL, request: pytest.FixtureRequest) -> None:
        encoding = request.node.callspec.params["encoded_url"]
        with pytest.raises(PersistenceError, match=f"{encoded_url.database}' stores text as {encoding}, .* 'UTF8'"):
            Database.open(url=encoded_url)

        async def open_it() -> None:
            await AsyncDatabase.open(url=encoded_url)

        with pytest.raises(PersistenceError, match=f"stores text as {encoding}"):
            asyncio.run(open_it())

    @pytest.mark.parametrize("encoded_url", ["UTF8"], indirect=True)
    @pytest.mark.parametrize("place", ["environment", "database", "address"])
    def test_the_client_encoding_of_a_connection_does_not_matter(
        self, encoded_url: URL, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if place == "environment":
            monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        elif place == "database":
            execute(encoded_url, f"ALTER DATABASE {encoded_url.database} SET client_encoding = 'LATIN1'")
        else:
            encoded_url = encoded_url.update_query_dict({"client_encoding": "latin1"})

        with Database.open(url=encoded_url, maintain_projections=False) as database:
            stored = database.events.append_all([renamed()])
            database.settings.set(POLISH, POLISH)
            assert database.events.replay_all() == stored
            assert database.settings.all() == {POLISH: POLISH}
            assert asyncio.run(append_and_replay(encoded_url)) == database.events.replay_all()

    def test_an_engine_of_the_application_fails_without_showing_the_text(self, migrated_postgresql_url: URL) -> None:
        engine = sqlalchemy.create_engine(migrated_postgresql_url, connect_args={"client_encoding": "latin1"})
        store = EventStore(engine)
        with pytest.raises(StoreUnavailable, match="sent as latin-1, which lacks some characters") as raised:
            store.append_all([renamed()])

        found: BaseException | None = raised.value
        while found is not None:
            assert POLISH not in str(vars(found)) + str(getattr(found, "object", ""))
            assert POLISH not in "".join(traceback.format_exception(found))
            found = found.__cause__ or found.__context__
        stored = store.append_all([renamed("ascii")])
        assert store.replay_all() == stored
        store.close()
        engine.dispose()


def with_option(url: URL, option: str) -> URL:
    return url.update_query_dict({"options": f"{url.query['options']} -c{option}"})


END_OF_ADVICE = "TO <role>  or, for a migration, connect as the owner of the tables$"


class TestPrivileges:
    @pytest.fixture
    def schema(self, migrated_postgresql_url: URL) -> str:
        return str(migrated_postgresql_url.query["options"]).partition("=")[2]

    @pytest.fixture
    def guest_url(self, migrated_postgresql_url: URL, schema: str) -> Iterator[URL]:
        """Returns the address for a role that may see the names of tables, and nothing else."""
        role = f"guest_of_{schema}"
        execute(migrated_postgresql_url, f"CREATE ROLE {role}", f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        yield with_option(migrated_postgresql_url, f"role={role}")
        execute(migrated_postgresql_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    def test_the_error_for_a_role_without_privileges_names_the_missing_grant(self, guest_url: URL) -> None:
        named = rf"permission denied for table alembic_version: run  GRANT SELECT ON alembic_version {END_OF_ADVICE}"
        with pytest.raises(StoreUnavailable, match=named):
            Database.open(url=guest_url)

    def test_the_error_for_a_write_by_a_role_that_may_only_read_names_the_missing_grant(
        self, migrated_postgresql_url: URL, guest_url: URL, schema: str
    ) -> None:
        role = f"guest_of_{schema}"
        Database.open(url=migrated_postgresql_url).close()  # creates the rows of the projections
        execute(guest_url.set(query={}), f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
        with Database.open(url=guest_url) as database:
            writes: list[Callable[[], object]] = [
                lambda: database.events.append_all([renamed()]),
                lambda: database.settings.set("theme", "dark"),
                lambda: database.events.durable_subscription("mailer"),
            ]
            named = rf"permission denied for table ([a-z_]+): run  GRANT [A-Z, ]+ ON \1 {END_OF_ADVICE}"
            for write in writes:
                with pytest.raises(StoreUnavailable, match=named):
                    write()
            assert database.events.replay_all() == []
            assert database.read_model.projects() == []

            execute(guest_url.set(query={}), f"REVOKE SELECT ON ALL TABLES IN SCHEMA {schema} FROM {role}")
            reads: list[Callable[[], object]] = [database.events.replay_all, database.read_model.projects]
            for read in reads:
                with pytest.raises(StoreUnavailable, match=named):
                    read()


def test_a_statement_timeout_ends_the_wait_for_other_appenders(migrated_postgresql_url: URL) -> None:
    with (
        Database.open(url=migrated_postgresql_url, maintain_projections=False) as database,
        Database.open(
            url=with_option(migrated_postgresql_url, "statement_timeout=100"), maintain_projections=False
        ) as hasty,
    ):
        with database.engine.begin() as connection:
            first = database.events.append_all([renamed()], connection=connection)
            with pytest.raises(StoreUnavailable, match=r"canceling statement due to statement timeout$"):
                hasty.events.append_all([renamed()])
        second = hasty.events.append_all([renamed()])
        assert database.events.replay_all() == first + second


def test_all_reads_except_verify_work_in_read_only_transactions(migrated_postgresql_url: URL) -> None:
    created = ProjectCreated(project_id=UUID(int=1), name=POLISH, path="/")
    with Database.open(url=migrated_postgresql_url) as database:
        stored = database.events.append_all([created])
        database.settings.set("theme", "dark")

    with Database.open(url=with_option(migrated_postgresql_url, "default_transaction_read_only=on")) as database:
        assert database.events.replay_all() == stored
        assert [project.name for project in database.read_model.projects()] == [POLISH]
        assert database.settings.all() == {"theme": "dark"}
        with database.events.subscribe() as subscription:
            assert next(subscription) == stored[0]
        writes: list[Callable[[], object]] = [
            lambda: database.events.append_all([renamed()]),
            lambda: database.settings.set("theme", "light"),
            lambda: database.events.durable_subscription("mailer"),
            database.projections.verify,
            database.projections.rebuild,
        ]
        for write in writes:
            with pytest.raises(StoreUnavailable, match=r"in a read-only transaction$"):
                write()
        assert database.events.replay_all() == stored


def test_appends_work_with_a_libpq_without_pipelines(
    migrated_postgresql_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    monkeypatch.setattr(psycopg.Connection, "pipeline", None)
    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        stored = [*database.events.append_all([renamed("a")]), *database.events.append_all([renamed("b")] * 20)]
        with database.engine.begin() as connection:
            stored += database.events.append_all([renamed("c")], connection=connection)
        condition = AppendCondition(EventQuery(tags={"project_id": UUID(int=1)}), after=len(stored))
        stored += database.events.append_all([renamed("d")], condition=condition, command_id=uuid4())
        assert database.events.replay_all() == stored
        assert [s.sequence for s in stored] == [*range(1, 24)]


def test_a_name_that_is_too_long_for_an_index_is_reported(migrated_postgresql_url: URL) -> None:
    name = "".join(Random(1).choices(ascii_letters, k=4_000))  # the server cannot compress it
    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        with pytest.raises(StoreUnavailable, match=r"index row size .* exceeds"):
            database.settings.set(name, 1)
        with pytest.raises(StoreUnavailable, match=r"index row size .* exceeds"):
            database.events.durable_subscription(name)
        assert database.settings.all() == {}
