"""After the steps of docs/how-to/remove-an-event.md, no byte of the database has what the event said."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from helpers.migrated_databases import file_of
from helpers.orchestration_scene import THREAD, TURN
from helpers.secret import SECRET, files_with_secret, relations_with_secret
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import IntegrityError

from peon.orchestration import (
    ChangesCommitted,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import CommandEventsRemoved, Database, EventQuery

INDEX_OF_TAGS = ("tag_positions", "event_tags", "tags")
PROJECT, MESSAGE, COMMAND = uuid4(), uuid4(), uuid4()
COMMITTED = ChangesCommitted(thread_id=THREAD, commit="c0ffee", message=SECRET)


def chunk(delta: str) -> MessageChunkReceived:
    return MessageChunkReceived(message_id=MESSAGE, turn_id=TURN, thread_id=THREAD, delta=delta)


def fill(database: Database) -> list[int]:
    """Stores events; returns the sequences of those that must go: a chunk of a streamed message, and a commit."""
    database.events.append_all(
        [
            ProjectCreated(project_id=PROJECT, name="tide-table", path="/"),
            ThreadCreated(
                thread_id=THREAD,
                project_id=PROJECT,
                provider=Provider.CLAUDE,
                model="x",
                runtime_mode=RuntimeMode.SUPERVISED,
            ),
            TurnStarted(turn_id=TURN, thread_id=THREAD),
            MessageAppended(
                message_id=MESSAGE,
                turn_id=TURN,
                thread_id=THREAD,
                role=MessageRole.ASSISTANT,
                content=TextContent(text=""),
            ),
        ]
    )
    streamed = database.events.append_all([chunk("High "), chunk(SECRET), chunk("tide")])
    database.events.append_all([TurnCompleted(turn_id=TURN, thread_id=THREAD)])
    committed = database.events.append_all([COMMITTED], command_id=COMMAND)
    database.events.append_all([chunk("!" * number) for number in range(50)])
    assert list(database.events.stream(query=EventQuery(thread_id=THREAD), limit=1))  # fills the index of tags
    assert SECRET in str(database.read_model.messages(TURN))
    assert SECRET in str(database.read_model.commits(THREAD))
    return [streamed[1].sequence, committed[0].sequence]


def delete(connection: Connection, sequences: list[int]) -> None:
    for sequence in sequences:
        connection.execute(text("DELETE FROM events WHERE sequence = :sequence"), {"sequence": sequence})
    for table in INDEX_OF_TAGS:
        connection.execute(text(f"DELETE FROM {table}"))


def assert_gone_for_readers(database: Database, removed: list[int]) -> None:
    assert SECRET not in str(database.events.replay_all())
    assert SECRET not in str(database.read_model.snapshot())
    (message,) = database.read_model.messages(TURN)
    assert message.content.text.startswith("High tide!")  # type: ignore[union-attr]
    assert database.projections.verify() == []
    found = [stored.sequence for stored in database.events.stream(query=EventQuery(thread_id=THREAD))]
    assert not set(removed) & set(found)
    with pytest.raises(CommandEventsRemoved):
        database.events.append_all([COMMITTED], command_id=COMMAND)


@pytest.fixture(params=["ON", "OFF"])
def secure_delete(request: pytest.FixtureRequest) -> Iterator[str]:
    """Some builds of SQLite overwrite what is deleted, others leave it in free pages."""

    def choose(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA secure_delete={request.param}")

    event.listen(Engine, "connect", choose)
    yield request.param
    event.remove(Engine, "connect", choose)


def test_on_sqlite(migrated_sqlite_url: URL, secure_delete: str) -> None:
    folder = file_of(migrated_sqlite_url).parent
    with Database.open(url=migrated_sqlite_url) as database:
        removed = fill(database)
        with database.engine.begin() as connection:
            trigger = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'events_refuse_delete'"))
            connection.execute(text("DROP TRIGGER events_refuse_delete"))
            delete(connection, removed)
            connection.execute(text(str(trigger)))
        assert SECRET in str(database.read_model.snapshot())
        database.projections.rebuild()
        assert_gone_for_readers(database, removed)
    if secure_delete == "OFF":
        assert "peon.db" in files_with_secret(folder)  # in free pages

    with closing(sqlite3.connect(file_of(migrated_sqlite_url), isolation_level=None)) as connection:
        connection.execute(f"PRAGMA secure_delete={secure_delete}")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert files_with_secret(folder) == []
    with Database.open(url=migrated_sqlite_url) as database:
        assert_gone_for_readers(database, removed)
        with pytest.raises(IntegrityError), database.engine.begin() as connection:
            connection.execute(text("DELETE FROM events WHERE sequence = 1"))
    assert files_with_secret(folder) == []


@pytest.mark.slow
@pytest.mark.alone  # waits for checkpoints of the server
def test_on_postgresql(migrated_postgresql_url: URL) -> None:
    with Database.open(url=migrated_postgresql_url) as database:
        removed = fill(database)
        alone = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with alone.connect() as connection:
            assert {"events", "projection_commits"} <= set(relations_with_secret(connection))
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE events DISABLE TRIGGER events_refuse_change"))
            delete(connection, removed)
            connection.execute(text("ALTER TABLE events ENABLE TRIGGER events_refuse_change"))
        database.projections.rebuild()
        assert_gone_for_readers(database, removed)
        with alone.connect() as connection:
            tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"))
            for table in tables.all():
                connection.execute(text(f"VACUUM FULL {table}"))
            assert relations_with_secret(connection) == []
        assert_gone_for_readers(database, removed)
