"""What an operator may have set on a PostgreSQL server: it works with that, or says what it needs."""

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from sqlalchemy import URL, text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, EventStore, PersistenceError, StoreUnavailable
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


class TestEncodings:
    @pytest.fixture(params=["LATIN1", "SQL_ASCII", "UTF8"])
    def encoded_url(self, request: pytest.FixtureRequest, postgresql_server: URL) -> Iterator[URL]:
        """A database that keeps its text so."""
        name = f"test_{uuid4().hex}"
        execute(
            postgresql_server,
            f"CREATE DATABASE {name} ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        )
        yield postgresql_server.set(database=name)
        execute(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")

    @pytest.mark.parametrize("encoded_url", ["LATIN1", "SQL_ASCII"], indirect=True)
    def test_a_database_in_another_is_refused(self, encoded_url: URL, request: pytest.FixtureRequest) -> None:
        encoding = request.node.callspec.params["encoded_url"]
        with pytest.raises(PersistenceError, match=f"{encoded_url.database}' stores text as {encoding}, .* 'UTF8'"):
            Database.open(url=encoded_url)

        async def open_it() -> None:
            await AsyncDatabase.open(url=encoded_url)

        with pytest.raises(PersistenceError, match=f"stores text as {encoding}"):
            asyncio.run(open_it())

    @pytest.mark.parametrize("encoded_url", ["UTF8"], indirect=True)
    @pytest.mark.parametrize("place", ["environment", "database", "address"])
    def test_what_a_connection_would_speak_does_not_matter(
        self, encoded_url: URL, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if place == "environment":
            monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        elif place == "database":
            execute(encoded_url, f"ALTER DATABASE {encoded_url.database} SET client_encoding = 'LATIN1'")
        else:
            encoded_url = encoded_url.update_query_dict({"client_encoding": "latin1"})

        with Database.open(url=encoded_url, projections=False) as database:
            stored = database.events.append_all([renamed()])
            database.settings.set(POLISH, POLISH)
            assert database.events.replay_all() == stored
            assert database.settings.all() == {POLISH: POLISH}
            assert asyncio.run(append_and_replay(encoded_url)) == database.events.replay_all()

    def test_an_engine_made_elsewhere_fails_without_showing_the_text(self, migrated_postgresql_url: URL) -> None:
        engine = sqlalchemy.create_engine(migrated_postgresql_url, connect_args={"client_encoding": "latin1"})
        store = EventStore(engine)
        with pytest.raises(StoreUnavailable, match="set their client_encoding to utf8") as raised:
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


async def append_and_replay(url: URL) -> list[Any]:
    async with await AsyncDatabase.open(url=url, projections=False) as database:
        await database.events.append_all([renamed()])
        return await database.events.replay_all()
