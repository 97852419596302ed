"""The tables, written out again, so that no change is accidental."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from helpers.postgresql_schemas import MigratedSchemas, in_schema
from sqlalchemy import URL, Engine, Inspector, insert, inspect, select, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import DBAPIError, IntegrityError

from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database
from peon.persistence.schema import (
    checkpoints,
    metadata,
    projection_messages,
    projection_projects,
    projection_threads,
    projection_turns,
)

NUMBER = "INTEGER on SQLite, BIGINT on PostgreSQL, NOT NULL"
WIDE = "BIGINT NOT NULL"
COUNTER = "INTEGER NOT NULL DEFAULT 0"
PLACE = "BIGINT NOT NULL DEFAULT 0"
TEXT = "TEXT NOT NULL"

COLUMNS = {
    "events": {"sequence": NUMBER, "event_type": TEXT, "payload": TEXT, "stored_at": TEXT},
    "projection_projects": {"id": TEXT, "name": TEXT, "path": TEXT, "created_at": TEXT, "sequence": PLACE},
    "projection_threads": {
        "id": TEXT,
        "project_id": TEXT,
        "title": "TEXT",
        "provider": TEXT,
        "model": TEXT,
        "runtime_mode": TEXT,
        "status": TEXT,
        "error": "TEXT",
        "created_at": TEXT,
        "updated_at": TEXT,
        "sequence": PLACE,
        "last_sequence": PLACE,
        "turn_count": COUNTER,
        "message_count": COUNTER,
        "first_words": "TEXT",
    },
    "projection_turns": {
        "id": TEXT,
        "thread_id": TEXT,
        "status": TEXT,
        "error": "TEXT",
        "started_at": TEXT,
        "completed_at": "TEXT",
        "sequence": PLACE,
    },
    "projection_messages": {
        "id": TEXT,
        "turn_id": TEXT,
        "role": TEXT,
        "content": TEXT,
        "created_at": TEXT,
        "sequence": PLACE,
        "thread_id": "TEXT NOT NULL DEFAULT ''",
    },
    "projection_message_chunks": {"turn_id": TEXT, "message_id": TEXT, "sequence": WIDE, "delta": TEXT},
    "projection_open_tool_calls": {
        "thread_id": TEXT,
        "sequence": WIDE,
        "turn_id": TEXT,
        "message_id": TEXT,
        "tool_call_id": TEXT,
    },
    "projection_approvals": {
        "id": TEXT,
        "thread_id": TEXT,
        "turn_id": TEXT,
        "action": TEXT,
        "detail": TEXT,
        "status": TEXT,
        "reason": "TEXT",
        "requested_at": TEXT,
        "decided_at": "TEXT",
        "sequence": WIDE,
    },
    "checkpoints": {
        "id": TEXT,
        "thread_id": TEXT,
        "turn_id": TEXT,
        "git_ref": TEXT,
        "created_at": TEXT,
        "sequence": PLACE,
        "restored_at": "TEXT",
    },
    "projection_commits": {"sequence": WIDE, "thread_id": TEXT, "hash": TEXT, "message": TEXT, "committed_at": TEXT},
    "projection_branches": {
        "thread_id": TEXT,
        "name": TEXT,
        "created_at": "TEXT",
        "remote": "TEXT",
        "pushed_at": "TEXT",
        "sequence": WIDE,
    },
    "projection_selected_thread": {"number": "INTEGER NOT NULL", "thread_id": TEXT},
    "projection_deletions": {"kind": TEXT, "id": TEXT, "sequence": WIDE},
    "projection_positions": {"name": TEXT, "version": "INTEGER NOT NULL", "sequence": WIDE},
    "projection_problems": {"projection": TEXT, "sequence": WIDE, "event_type": TEXT, "reason": TEXT},
    "settings": {"key": TEXT, "value": TEXT},
    "append_lock": {"number": "INTEGER NOT NULL"},
    "log_identity": {"number": "INTEGER NOT NULL", "identity": TEXT},
    "tags": {"id": NUMBER, "name": TEXT, "value": TEXT},
    "event_tags": {"tag_id": WIDE, "sequence": WIDE},
    "tag_positions": {"name": TEXT, "sequence": WIDE},
    "command_receipts": {"command_id": TEXT, "first_sequence": WIDE, "events": "INTEGER NOT NULL", "stored_at": TEXT},
    "subscription_positions": {"name": TEXT, "sequence": WIDE, "saved_at": TEXT},
    "compaction": {"number": "INTEGER NOT NULL", "steps": WIDE},
    "merged_events": {"sequence": WIDE, "events": "INTEGER NOT NULL", "merged_at": TEXT},
    "redactions": {
        "number": "INTEGER NOT NULL",
        "redacted_at": TEXT,
        "redacted_by": TEXT,
        "query": TEXT,
        "rule": TEXT,
        "events": WIDE,
    },
    "redacted_events": {"sequence": WIDE, "redaction": "INTEGER NOT NULL"},
    "removed_events": {"first_sequence": WIDE, "last_sequence": WIDE, "reason": TEXT, "removed_at": TEXT},
}

PRIMARY_KEYS = {
    "projection_message_chunks": ["turn_id", "message_id", "sequence"],
    "projection_open_tool_calls": ["thread_id", "sequence"],
    "projection_branches": ["thread_id", "name"],
    "projection_deletions": ["kind", "id", "sequence"],
    "projection_problems": ["projection", "sequence"],
    "event_tags": ["tag_id", "sequence"],
}
"""The primary keys that are not just the first column."""

INDEXES = {
    "idx_events_sequence": ("events", ["sequence"]),
    "idx_turns_thread": ("projection_turns", ["thread_id", "sequence"]),
    "idx_messages_turn": ("projection_messages", ["turn_id", "sequence"]),
    "idx_unfinished_threads": ("projection_threads", ["sequence"]),
    "idx_running_turns": ("projection_turns", ["sequence"]),
    "idx_pending_approvals": ("projection_approvals", ["sequence"]),
    "idx_pending_approvals_thread_id": ("projection_approvals", ["thread_id", "sequence"]),
} | {
    f"idx_{table}_{'_'.join(columns)}": (table, columns)
    for table, columns in [
        ("projection_projects", ["sequence"]),
        ("projection_threads", ["project_id", "sequence"]),
        ("projection_threads", ["last_sequence"]),
        ("projection_threads", ["project_id", "last_sequence"]),
        ("projection_messages", ["thread_id", "sequence"]),
        ("checkpoints", ["thread_id", "sequence"]),
        ("checkpoints", ["turn_id"]),
        ("projection_approvals", ["thread_id"]),
        ("projection_approvals", ["turn_id"]),
        ("projection_commits", ["thread_id", "sequence"]),
        ("projection_branches", ["thread_id", "sequence"]),
        ("projection_selected_thread", ["thread_id"]),
    ]
}

FOREIGN_KEYS = {
    ("projection_threads", "project_id", "projection_projects", "id", "CASCADE"),
    ("projection_turns", "thread_id", "projection_threads", "id", "CASCADE"),
    ("projection_messages", "turn_id", "projection_turns", "id", "CASCADE"),
    ("projection_message_chunks", "turn_id", "projection_turns", "id", "CASCADE"),
    ("projection_open_tool_calls", "thread_id", "projection_threads", "id", "CASCADE"),
    ("projection_approvals", "thread_id", "projection_threads", "id", "CASCADE"),
    ("projection_approvals", "turn_id", "projection_turns", "id", "CASCADE"),
    ("checkpoints", "thread_id", "projection_threads", "id", "CASCADE"),
    ("checkpoints", "turn_id", "projection_turns", "id", "CASCADE"),
    ("projection_commits", "thread_id", "projection_threads", "id", "CASCADE"),
    ("projection_branches", "thread_id", "projection_threads", "id", "CASCADE"),
    ("projection_selected_thread", "thread_id", "projection_threads", "id", "CASCADE"),
}

CHANGES = [
    "UPDATE events SET payload = '{}'",
    "UPDATE events SET sequence = sequence + 10 WHERE sequence = 2",
    "UPDATE events SET stored_at = stored_at WHERE sequence = 1",
    "DELETE FROM events",
    "DELETE FROM events WHERE sequence = 3",
    (
        "INSERT INTO events (sequence, event_type, payload, stored_at) VALUES (2, 't', '{}', 's') "
        "ON CONFLICT (sequence) DO UPDATE SET payload = excluded.payload"
    ),
]

SQLITE_CHANGES = [
    *CHANGES,
    "INSERT OR REPLACE INTO events (sequence, event_type, payload, stored_at) VALUES (2, 't', '{}', 's')",
    "REPLACE INTO events (sequence, event_type, payload, stored_at) VALUES (1, 't', '{}', 's'), (9, 't', '{}', 's')",
    "UPDATE OR IGNORE events SET payload = '{}'",
    "UPDATE OR REPLACE events SET sequence = 1 WHERE sequence = 2",
]

POSTGRESQL_CHANGES = [*CHANGES, "TRUNCATE events", "TRUNCATE events RESTART IDENTITY CASCADE"]


def some_events(count: int) -> list[OrchestrationEvent]:
    return [ProjectRenamed(project_id=uuid4(), name=f"name {n}") for n in range(count)]


@pytest.fixture
def database(migrated_lasting_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        yield database


@pytest.fixture(scope="module", params=["file", "postgresql"])
def as_opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Returns a database of each kind as `Database.open` creates it; tests share it, because they only inspect it."""
    if request.param == "file":
        with Database.open(
            url=f"sqlite:///{tmp_path_factory.mktemp('as_opened') / 'peon.db'}", maintain_projections=False
        ) as database:
            yield database.engine
        return
    schemas: MigratedSchemas = request.getfixturevalue("migrated_schemas")
    schema = schemas.create()
    with Database.open(
        url=in_schema(request.getfixturevalue("postgresql_server"), schema), maintain_projections=False
    ) as database:
        yield database.engine
    schemas.drop(schema)


@pytest.fixture
def inspector(as_opened: Engine) -> Inspector:
    return inspect(as_opened)


def test_there_are_exactly_these_tables_and_that_of_alembic(inspector: Inspector) -> None:
    assert len(COLUMNS) == 28
    assert set(inspector.get_table_names()) == {*COLUMNS, "alembic_version"}
    assert inspector.get_view_names() == []


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_exactly_these_columns(inspector: Inspector, table: str) -> None:
    number = {"sqlite": "INTEGER NOT NULL", "postgresql": "BIGINT NOT NULL"}[inspector.dialect.name]
    expected = {name: number if column == NUMBER else column for name, column in COLUMNS[table].items()}

    columns = inspector.get_columns(table)

    assert [(column["name"], definition(column)) for column in columns] == [*expected.items()]
    keys = PRIMARY_KEYS.get(table, [next(iter(expected))])
    assert inspector.get_pk_constraint(table)["constrained_columns"] == keys
    unique = {constraint["name"]: constraint["column_names"] for constraint in inspector.get_unique_constraints(table)}
    assert unique == ({"uq_tags_name_value": ["name", "value"]} if table == "tags" else {})
    assert inspector.get_check_constraints(table) == []


def definition(column: ReflectedColumn) -> str:
    nullable = "" if column["nullable"] else " NOT NULL"
    default = column["default"]
    return f"{column['type']}{nullable}" + ("" if default is None else f" DEFAULT {default.removesuffix('::text')}")


def test_there_are_exactly_these_indexes(inspector: Inspector) -> None:
    indexes = {
        index["name"]: (table, index["column_names"], bool(index["unique"]))
        for table in inspector.get_table_names()
        for index in inspector.get_indexes(table)
        if not index.get("duplicates_constraint")
    }

    assert indexes == {name: (table, columns, False) for name, (table, columns) in INDEXES.items()}


def test_children_refer_to_their_parents_and_are_deleted_with_them(inspector: Inspector) -> None:
    foreign_keys = {
        (
            table,
            *key["constrained_columns"],
            key["referred_table"],
            *key["referred_columns"],
            key["options"]["ondelete"],
        )
        for table in inspector.get_table_names()
        for key in inspector.get_foreign_keys(table)
    }

    assert foreign_keys == FOREIGN_KEYS


def test_the_database_numbers_events_and_accepts_a_number_of_the_store(inspector: Inspector) -> None:
    sequence = inspector.get_columns("events")[0]

    if inspector.dialect.name == "postgresql":
        assert sequence["identity"]["always"] is False
        assert sequence["identity"]["start"] == 1
    else:
        with inspector.engine.connect() as connection:
            ddl = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'events'"))
        assert "PRIMARY KEY AUTOINCREMENT" in ddl


def test_metadata_and_migrations_agree(as_opened: Engine) -> None:
    with as_opened.connect() as connection:
        # SQLite does not report identity columns, so Alembic would report a difference.
        options = {"compare_type": True, "compare_server_default": connection.dialect.name == "postgresql"}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_metadata_and_migrations_create_identical_tables_in_sqlite(sqlite_url: URL) -> None:
    # Alembic's comparison ignores names of constraints, AUTOINCREMENT and ON DELETE.
    def definitions(engine: sqlalchemy.Engine) -> dict[str, list[str]]:
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE type != 'trigger' AND sql IS NOT NULL")
            )
            return {name: sorted(parts_of(sql)) for name, sql in rows}

    created = sqlalchemy.create_engine("sqlite://")
    metadata.create_all(created)
    with Database.open(url=sqlite_url, maintain_projections=False) as migrated:
        expected = definitions(migrated.engine)
    del expected["alembic_version"]

    assert definitions(created) == expected
    created.dispose()


def parts_of(sql: str) -> list[str]:
    """Returns the parts of a table's definition as a set, because ALTER TABLE adds columns at the end."""
    parts, depth = [""], 0
    for character in sql:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if (character == "," and depth == 1) or (character in "()" and depth == (character == "(")):
            parts.append("")
        else:
            parts[-1] += character
    return [" ".join(part.split()) for part in parts]


def add_project(database: Database, name: str) -> None:
    """Adds a project with two threads, each with two turns, each with two messages and a checkpoint."""
    now = "2026-01-31T23:59:59.000000Z"
    threads = [f"{name}-{n}" for n in (1, 2)]
    turns = [(thread, f"{thread}-{n}") for thread in threads for n in (1, 2)]
    with database.engine.begin() as connection:
        connection.execute(insert(projection_projects).values(id=name, name=name, path="/", created_at=now))
        common = {"provider": "codex", "model": "m", "runtime_mode": "supervised", "status": "idle"}
        connection.execute(
            insert(projection_threads),
            [{"id": t, "project_id": name, "created_at": now, "updated_at": now, **common} for t in threads],
        )
        connection.execute(
            insert(projection_turns),
            [{"id": turn, "thread_id": thread, "status": "running", "started_at": now} for thread, turn in turns],
        )
        connection.execute(
            insert(projection_messages),
            [
                {"id": f"{turn}-{n}", "turn_id": turn, "role": "user", "content": "{}", "created_at": now}
                for _, turn in turns
                for n in (1, 2)
            ],
        )
        connection.execute(
            insert(checkpoints),
            [
                {"id": turn, "thread_id": thread, "turn_id": turn, "git_ref": "HEAD", "created_at": now}
                for thread, turn in turns
            ],
        )


def test_deleting_a_project_deletes_all_its_rows(database: Database) -> None:
    tables = [projection_projects, projection_threads, projection_turns, projection_messages, checkpoints]
    add_project(database, "kept")
    with database.engine.connect() as connection:
        kept = {table.name: connection.execute(select(table).order_by(table.c.id)).all() for table in tables}
    add_project(database, "gone")

    with database.engine.begin() as connection:
        connection.execute(projection_projects.delete().where(projection_projects.c.id == "gone"))

    with database.engine.connect() as connection:
        left = {table.name: connection.execute(select(table).order_by(table.c.id)).all() for table in tables}
    assert left == kept
    assert [len(rows) for rows in left.values()] == [1, 2, 4, 8, 4]


def test_a_row_without_an_existing_parent_is_refused(database: Database) -> None:
    turn = {"id": "t", "thread_id": "none", "status": "running", "started_at": "2026-01-31T23:59:59.000000Z"}

    with pytest.raises(IntegrityError), database.engine.begin() as connection:
        connection.execute(insert(projection_turns).values(turn))


def refuse(database: Database, change: str) -> None:
    stored = database.events.append_all(some_events(3))

    with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
        connection.exec_driver_sql(change)

    assert database.events.replay_all() == stored
    assert [s.sequence for s in database.events.append_all(some_events(1))] == [4]


@pytest.mark.parametrize("change", SQLITE_CHANGES)
def test_sqlite_refuses_to_change_a_stored_event(sqlite_url: URL, change: str) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        refuse(database, change)


@pytest.mark.parametrize("change", POSTGRESQL_CHANGES)
def test_postgresql_refuses_to_change_a_stored_event(migrated_postgresql_url: URL, change: str) -> None:
    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        refuse(database, change)


@pytest.mark.parametrize("change", ["UPDATE events SET payload = '{}'", "DELETE FROM events"])
def test_sqlite_refuses_changes_by_other_programs_too(sqlite_url: URL, change: str) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        stored = database.events.append_all(some_events(3))

        with closing(sqlite3.connect(str(sqlite_url.database))) as other:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                other.execute(change)
            other.commit()

        assert database.events.replay_all() == stored


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_sequence_is_never_used_again(sqlite_url: URL, count: int) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        database.events.append_all(some_events(count))
    with closing(sqlite3.connect(str(sqlite_url.database))) as connection:
        ((trigger,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'events_refuse_delete'")
        connection.executescript(f"DROP TRIGGER events_refuse_delete; DELETE FROM events; {trigger};")

    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        assert [s.sequence for s in database.events.append_all(some_events(2))] == [count + 1, count + 2]


def test_a_new_database_is_a_single_file(sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        database.events.append_all(some_events(1))

    assert [path.name for path in Path(str(sqlite_url.database)).parent.iterdir()] == ["peon.db"]
