"""Parts of the schema that were removed by hand: start-up and the append that needs them say which."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import URL, text

from peon.orchestration import ProjectRenamed
from peon.persistence import (
    AppendCondition,
    Database,
    EventQuery,
    PersistenceError,
    SchemaError,
    StoreUnavailable,
    create_engine,
)
from peon.persistence.asynchronous import AsyncDatabase, create_async_engine
from peon.persistence.migrations import revisions

LAST_SEQUENCE = 2**63 - 1


def renamed() -> ProjectRenamed:
    return ProjectRenamed(project_id=uuid4(), name="new")


def run(url: URL, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def opening(url: URL) -> list[Callable[[], object]]:
    async def opened() -> None:
        await (await AsyncDatabase.open(url=url, maintain_projections=False)).close()

    return [
        lambda: Database.open(url=url, maintain_projections=False).close(),
        lambda: Database.open(url=url, maintain_projections=False, migrate=False).close(),
        lambda: asyncio.run(opened()),
    ]


def assert_refused(url: URL, *details: str) -> None:
    for opened in opening(url):
        with pytest.raises(SchemaError) as refused:
            opened()
        for detail in (*details, str(url.database)):
            assert detail in str(refused.value)


@pytest.fixture
def revision_rows(migrated_lasting_url: URL) -> Iterator[URL]:
    yield migrated_lasting_url
    run(migrated_lasting_url, "DELETE FROM alembic_version WHERE version_num = '001_initial'")


def test_two_rows_in_alembic_version_are_named_at_start(revision_rows: URL) -> None:
    run(revision_rows, "INSERT INTO alembic_version VALUES ('001_initial')")
    assert_refused(revision_rows, "001_initial", revisions()[-1], "alembic_version", "delete")


@pytest.mark.parametrize("trigger", ["events_refuse_update", "events_refuse_delete"])
def test_a_missing_trigger_is_named_at_start_on_sqlite(migrated_sqlite_url: URL, trigger: str) -> None:
    run(migrated_sqlite_url, f"DROP TRIGGER {trigger}")
    assert_refused(migrated_sqlite_url, trigger, "upgrade head --sql")


@pytest.mark.parametrize("trigger", ["events_refuse_change", "events_notify"])
def test_a_missing_trigger_is_named_at_start_on_postgresql(migrated_postgresql_url: URL, trigger: str) -> None:
    run(migrated_postgresql_url, f"DROP TRIGGER {trigger} ON events")
    assert_refused(migrated_postgresql_url, trigger, "upgrade head --sql")


@pytest.fixture
def without_lock_row(migrated_postgresql_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        run(migrated_postgresql_url, "DELETE FROM append_lock")
        yield database
    run(migrated_postgresql_url, "INSERT INTO append_lock VALUES (1) ON CONFLICT DO NOTHING")


LOCK_ROW = r"INSERT INTO append_lock \(number\) VALUES \(1\)"


def test_a_missing_lock_row_is_named_at_start(without_lock_row: Database) -> None:
    assert_refused(without_lock_row.engine.url, "INSERT INTO append_lock (number) VALUES (1)")


@pytest.mark.parametrize("kind", ["alone", "many", "conditional", "in a transaction"])
def test_a_missing_lock_row_is_named_at_the_append(without_lock_row: Database, kind: str) -> None:
    events = without_lock_row.events
    appends: dict[str, Callable[[], object]] = {
        "alone": lambda: events.append_all([renamed()]),
        "many": lambda: events.append_all([renamed()] * 3),
        "conditional": lambda: events.append_all([renamed()], condition=AppendCondition(query=EventQuery(), after=0)),
        "in a transaction": lambda: in_a_transaction(without_lock_row),
    }
    with pytest.raises(StoreUnavailable, match=LOCK_ROW):
        appends[kind]()
    assert events.last_sequence() == 0
    run(without_lock_row.engine.url, "INSERT INTO append_lock (number) VALUES (1)")
    appends[kind]()


def in_a_transaction(database: Database) -> None:
    with database.engine.begin() as connection:
        database.events.append_all([renamed()], connection=connection)


def test_each_of_many_appends_without_the_lock_row_is_told(without_lock_row: Database) -> None:
    def append(_: int) -> str:
        # A store for each thread: they do not share transactions.
        with Database(create_engine(without_lock_row.engine.url), maintain_projections=False) as database:
            try:
                database.events.append_all([renamed()])
            except PersistenceError as error:
                return str(error)
        return "stored"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(append, range(40)))
    assert all("INSERT INTO append_lock" in outcome for outcome in outcomes), set(outcomes)


def test_a_missing_lock_row_is_named_in_an_event_loop(without_lock_row: Database) -> None:
    async def append() -> None:
        engine = create_async_engine(without_lock_row.engine.url)
        async with AsyncDatabase(engine, maintain_projections=False) as database:
            with pytest.raises(StoreUnavailable, match=LOCK_ROW):
                await database.events.append_all([renamed()])

    asyncio.run(append())


def exhaust(url: URL, *, left: int) -> None:
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            connection.execute("INSERT INTO sqlite_sequence VALUES ('events', ?)", [LAST_SEQUENCE - left])
            connection.commit()
    else:
        row = f"({LAST_SEQUENCE - left}, 'project.renamed', '{{}}', '2026-01-01T00:00:00.000000Z')"
        run(url, f"INSERT INTO events (sequence, event_type, payload, stored_at) OVERRIDING SYSTEM VALUE VALUES {row}")


@pytest.mark.parametrize(("left", "events"), [(0, 1), (1, 2), (2, 50), (1, 18)])
@pytest.mark.parametrize("face", ["threads", "event loop"])
def test_the_end_of_the_sequence_is_not_a_full_disk(url_to_exhaust: URL, left: int, events: int, face: str) -> None:
    exhaust(url_to_exhaust, left=left)

    async def append() -> None:
        async with await AsyncDatabase.open(url=url_to_exhaust, maintain_projections=False) as database:
            await database.events.append_all([renamed()] * events)

    with pytest.raises(StoreUnavailable, match=f"sequence.*{LAST_SEQUENCE}") as refused:
        if face == "event loop":
            asyncio.run(append())
        else:
            with Database.open(url=url_to_exhaust, maintain_projections=False) as database:
                database.events.append_all([renamed()] * events)
    assert "disk" not in str(refused.value)
    assert str(url_to_exhaust.database) in str(refused.value)


@pytest.fixture(params=["file", "postgresql"])
def url_to_exhaust(request: pytest.FixtureRequest) -> Iterator[URL]:
    if request.param == "file":
        yield request.getfixturevalue("migrated_sqlite_url")
        return
    url = request.getfixturevalue("migrated_postgresql_url")
    yield url
    run(
        url,
        "ALTER TABLE events DISABLE TRIGGER USER",
        "DELETE FROM events",
        "ALTER TABLE events ENABLE TRIGGER USER",
    )
