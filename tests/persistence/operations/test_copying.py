"""A copied database has every row unchanged, or no rows at all."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.agent_session import long_session
from helpers.processes import PATIENCE
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import URL, Connection, Engine, Table, insert, select, text
from sqlalchemy.exc import OperationalError

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import (
    Database,
    EventQuery,
    PersistenceError,
    SchemaOutOfDate,
    StoreUnavailable,
    UndecodableEvent,
)
from peon.persistence.log import pages
from peon.persistence.operations.copying import COPIED_TABLES, copy_database
from peon.persistence.schema import (
    command_receipts,
    events,
    merged_events,
    redacted_events,
    redactions,
    removed_events,
    settings,
    subscription_positions,
)

PROJECT = UUID(int=1)
COMMAND = UUID(int=2)

MEMORY = URL.create("sqlite", database=":memory:")

Prepare = Callable[[str], URL]


@pytest.fixture
def prepare(request: pytest.FixtureRequest, tmp_path: Path) -> Prepare:
    """Returns a function that creates an empty database; the database is migrated unless it is in memory."""

    def prepared(kind: str) -> URL:
        if kind == "file":
            file = tmp_path / f"{uuid4().hex}.db"
            shutil.copy(request.getfixturevalue("migrated_file"), file)
            return URL.create("sqlite", database=str(file))
        if kind == "postgresql":
            url: URL = request.getfixturevalue("migrated_postgresql_url")
            return url
        return MEMORY

    return prepared


@pytest.fixture(params=[("file", "postgresql"), ("postgresql", "file"), ("file", "memory")], ids="-".join)
def pair(request: pytest.FixtureRequest, prepare: Prepare) -> Iterator[tuple[Database, Database]]:
    """A source with rows in all tables, and an empty target."""
    yield from opened(*map(prepare, request.param))


@pytest.fixture
def files(prepare: Prepare) -> Iterator[tuple[Database, Database]]:
    yield from opened(prepare("file"), prepare("file"))


@pytest.fixture
def to_postgresql(prepare: Prepare) -> Iterator[tuple[Database, Database]]:
    yield from opened(prepare("file"), prepare("postgresql"))


def opened(source_url: URL, target_url: URL) -> Iterator[tuple[Database, Database]]:
    with Database.open(url=source_url) as source, Database.open(url=target_url) as target:
        populate(source)
        yield source, target
        for database in (source, target):
            database.events.close()
            assert database.engine.pool.checkedout() == 0, "a connection was not given back"


def populate(database: Database) -> None:
    database.events.append_all(
        [
            ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table"),
            ProjectRenamed(project_id=PROJECT, name="Gezeiten 🌊 'quoted' \\x00 %s"),
        ],
        command_id=COMMAND,
    )
    database.settings.set("theme", {"dark": True, "NUL": "\0", "ä": "\\"})
    database.settings.set("Ärger", [1, 2.5, None])
    with database.events.durable_subscription("mail") as subscription:
        next(subscription)
        subscription.save_position()
    with database.engine.begin() as connection:  # no version of the code can decode these events
        add(connection, removed_events, (1000, 1001, "compaction", "any time"))
        add(connection, merged_events, (1002, 3, "any time"))
        add(connection, redactions, (1, "any time", "ada", "[{}]", "rule", 1))
        add(connection, redacted_events, (1002, 1))
        add(connection, events, (3, "Unknown", '{"type":"Unknown"}', "any time"))
        add(connection, events, (4, "ProjectRenamed", "", ""))
        add(connection, events, (5, "", '{"name": "\\u0000",  "name": 1e400}', "any time"))


def add(connection: Connection, table: Table, row: tuple[Any, ...]) -> None:
    connection.execute(insert(table).values(row))


def rows_of(database: Database) -> dict[str, list[Any]]:
    with database.engine.connect() as connection:
        return {table.name: sorted(map(tuple, connection.execute(select(table)))) for table in COPIED_TABLES}


def is_empty(database: Database) -> bool:
    return not any(rows_of(database).values())


@pytest.mark.postgresql_too("the types of columns")
def test_every_row_is_copied_unchanged(pair: tuple[Database, Database]) -> None:
    source, target = pair
    before = rows_of(source)

    assert copy_database(source, target) == 5

    assert all(before.values()), "each table has rows to copy"
    assert rows_of(target) == rows_of(source) == before
    kept = list(target.events.stream(undecodable=UndecodableEvent))
    assert [type(stored.event) is UndecodableEvent for stored in kept] == [False, False, True, True, True]


def test_projections_are_built_from_the_copy(pair: tuple[Database, Database]) -> None:
    source, target = pair
    copy_database(source, target)
    assert target.read_model.projects() == []

    target.projections.catch_up()

    assert target.read_model.projects() == source.read_model.projects() != []
    source.projections.catch_up()
    assert target.projections.problems() == source.projections.problems() != []
    assert target.projections.verify() == source.projections.verify()


def test_a_long_session_is_verified_in_the_target(prepare: Prepare) -> None:
    with Database.open(url=prepare("file")) as source, Database.open(url=prepare("postgresql")) as target:
        source.events.append_all(long_session(turns=4))
        copy_database(source, target)
        target.projections.catch_up()

        assert target.projections.verify() == []
        assert target.read_model.snapshot() == source.read_model.snapshot()
        assert target.events.replay_all() == source.events.replay_all()


def test_appends_continue_after_the_last_event(pair: tuple[Database, Database]) -> None:
    source, target = pair
    copy_database(source, target)

    stored = target.events.append_all([ProjectRenamed(project_id=PROJECT, name="a")] * 2)  # without catching up first

    assert [event.sequence for event in stored] == [6, 7]
    assert target.projections.position() == 7
    assert target.read_model.projects()[0].name == "a"


def test_the_target_recognizes_a_repeated_command(pair: tuple[Database, Database]) -> None:
    source, target = pair
    first = source.events.replay_from(1, undecodable=UndecodableEvent)[:2]
    copy_database(source, target)

    assert target.events.append_all([stored.event for stored in first], command_id=COMMAND) == first
    assert target.events.last_sequence() == 5


def test_a_subscription_resumes_at_its_position_in_the_target(pair: tuple[Database, Database]) -> None:
    source, target = pair
    copy_database(source, target)

    with target.events.durable_subscription("mail", undecodable=UndecodableEvent) as subscription:
        assert next(subscription).sequence == 2


def test_progress_is_reported_after_each_page(
    files: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 2)
    calls: list[tuple[int, int]] = []

    copy_database(*files, lambda *call: calls.append(call))

    assert calls == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]


def test_an_empty_database_is_copied(prepare: Prepare) -> None:
    with Database.open(url=prepare("file")) as source, Database.open(url=prepare("file")) as target:
        assert copy_database(source, target) == 0
        assert is_empty(target)
        assert target.events.append_all([ProjectCreated(project_id=PROJECT, name="a", path="/a")])[0].sequence == 1


def test_rows_of_other_tables_are_copied_in_pages(
    files: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peon.persistence.operations.copying.transaction.PAGE_ROWS", 3)
    source, target = files
    for number in range(10):
        source.settings.set(f"key {number}", number)

    copy_database(source, target)

    assert rows_of(target) == rows_of(source)


@pytest.mark.parametrize("table", COPIED_TABLES, ids=lambda table: table.name)
def test_a_target_that_is_not_empty_is_refused(files: tuple[Database, Database], table: Table) -> None:
    source, target = files
    with target.engine.begin() as connection:
        add(connection, table, tuple(1 if column.type.python_type is int else "x" for column in table.columns))
    before = rows_of(target)

    with pytest.raises(PersistenceError, match=rf"is not empty: it holds 1 row of {table.name}\. .* a new database"):
        copy_database(source, target)

    assert rows_of(target) == before


@pytest.mark.parametrize("kind", ["file", "memory", "postgresql"])
def test_a_database_is_not_copied_onto_itself(prepare: Prepare, kind: str, tmp_path: Path) -> None:
    url = same = prepare(kind)
    if kind == "file":
        link = tmp_path / "link.db"
        link.symlink_to(str(url.database))
        same = url.set(database=str(link))
    with Database.open(url=url) as source, Database.open(url=same) as other:
        target = source if kind == "memory" else other
        with pytest.raises(PersistenceError, match="are the same database"):
            copy_database(source, target)


def test_a_database_in_memory_is_copied_to_another() -> None:
    with Database.open(url=MEMORY) as source, Database.open(url=MEMORY) as target:
        populate(source)
        assert copy_database(source, target) == 5
        assert rows_of(target) == rows_of(source)
        # The source's only connection still refuses text that is not UTF-8.
        with source.engine.connect() as connection, pytest.raises(OperationalError, match="UTF-8"):
            connection.scalar(text("SELECT CAST(x'ff' AS TEXT)"))


@pytest.mark.parametrize("behind", [0, 1])
def test_both_must_be_at_the_newest_revision(files: tuple[Database, Database], behind: int) -> None:
    with files[behind].engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '003_projections'"))

    with pytest.raises(SchemaOutOfDate, match="alembic"):
        copy_database(*files)


@pytest.mark.postgresql_too("what a transaction undoes, and the types of columns")
def test_an_interrupted_copy_leaves_nothing(pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 2)
    source, target = pair
    for done in (2, 5, 10):  # between two pages, before the other tables, and before the commit

        def interrupt(at: int, total: int, until: int = done) -> None:
            if at == until:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy_database(source, target, interrupt)
        assert is_empty(target)

    assert copy_database(source, target) == 5
    assert rows_of(target) == rows_of(source)
    assert target.events.append_all([ProjectRenamed(project_id=PROJECT, name="a")])[0].sequence == 6


@pytest.mark.postgresql_too("the types of columns")
@pytest.mark.parametrize("pair", [("file", "file"), ("file", "postgresql")], indirect=True, ids="-".join)
def test_a_row_that_the_target_refuses_leaves_nothing(pair: tuple[Database, Database]) -> None:
    source, target = pair
    on_postgresql = target.engine.dialect.name == "postgresql"
    refuse = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'no room'; END $$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON subscription_positions FOR EACH ROW EXECUTE FUNCTION refuse()"
        if on_postgresql
        else "CREATE TRIGGER refuse BEFORE INSERT ON subscription_positions BEGIN SELECT RAISE(ABORT, 'no room'); END"
    )
    run(target.engine, refuse)

    with pytest.raises(StoreUnavailable, match="no room"):
        copy_database(source, target)
    assert is_empty(target)

    run(target.engine, f"DROP TRIGGER refuse {'ON subscription_positions' if on_postgresql else ''}")
    assert copy_database(source, target) == 5


@pytest.mark.postgresql_too("the types of columns")
def test_a_row_that_the_target_changed_is_reported(to_postgresql: tuple[Database, Database]) -> None:
    for column, row in [
        (events.c.payload, "row 1 of events differs"),
        (events.c.stored_at, "row 1 of events differs"),
        (settings.c.value, "row '.+' of settings differs"),
        (command_receipts.c.first_sequence, f"row '{COMMAND}' of command_receipts differs"),
        (subscription_positions.c.saved_at, "row 'mail' of subscription_positions differs"),
    ]:
        refused_with_trigger(*to_postgresql, column.table, f"NEW.{column.name} = '7'; RETURN NEW;", row)


@pytest.mark.postgresql_too("the types of columns")
def test_a_row_that_the_target_dropped_is_reported(to_postgresql: tuple[Database, Database]) -> None:
    for table in COPIED_TABLES:
        refused_with_trigger(*to_postgresql, table, "RETURN NULL;", f"row .+ of {table.name} is missing")


@pytest.mark.postgresql_too("the types of columns")
def test_a_row_that_the_target_added_is_reported(to_postgresql: tuple[Database, Database]) -> None:
    for table in COPIED_TABLES:
        values = ", ".join("'99'" for _ in table.columns)
        add_row = f"INSERT INTO {table.name} VALUES ({values}) ON CONFLICT DO NOTHING"
        effect = f"IF pg_trigger_depth() = 1 THEN {add_row}; END IF; RETURN NEW;"
        refused_with_trigger(*to_postgresql, table, effect, f"{table.name} holds . rows after the copy of .")


def refused_with_trigger(source: Database, target: Database, table: Table, effect: str, message: str) -> None:
    run(
        target.engine,
        f"CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {effect} END $$; "
        f"CREATE TRIGGER change BEFORE INSERT ON {table.name} FOR EACH ROW EXECUTE FUNCTION change()",
    )

    with pytest.raises(PersistenceError, match=message) as caught:
        copy_database(source, target)

    assert "tide-table" not in str(caught.value)
    assert is_empty(target)
    run(target.engine, "DROP FUNCTION change() CASCADE")


def run(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statements)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("INSERT INTO events VALUES (9, 'a', x'ff00', 'c')", "row 9 of events is damaged: its value of payload"),
        (
            "INSERT INTO events VALUES (9, 'a', CAST(x'ff61' AS TEXT), 'c')",
            "row 9 of events is damaged: its value of payload",
        ),
        ("INSERT INTO events VALUES (9, x'61', 'b', x'62')", "row 9 of events .* value of event_type, stored_at"),
        (
            "INSERT INTO settings VALUES ('a', CAST(x'ff' AS TEXT))",
            "row 'a' of settings is damaged: its value of value",
        ),
        ("INSERT INTO settings VALUES (x'ff', '1')", r"row b'\\xff' of settings is damaged: its value of key"),
        (
            "INSERT INTO command_receipts VALUES ('a', 'many', 1.5, 'b')",
            "row 'a' .* value of first_sequence, events is not",
        ),
        (
            "INSERT INTO subscription_positions VALUES ('a', x'01', 'b')",
            "row 'a' of subscription_positions .* sequence",
        ),
    ],
)
def test_the_error_names_a_damaged_row(files: tuple[Database, Database], statement: str, row: str) -> None:
    source, target = files
    with closing(sqlite3.connect(str(source.engine.url.database))) as connection:
        connection.execute(statement)
        connection.commit()

    with pytest.raises(PersistenceError, match=row):
        copy_database(source, target)

    assert is_empty(target)


def test_the_error_names_a_row_without_a_payload(files: tuple[Database, Database]) -> None:
    """A recovered file can contain such a row; SQLite itself would refuse to insert it."""
    source, target = files
    with closing(sqlite3.connect(str(source.engine.url.database))) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'payload TEXT NOT NULL', 'payload TEXT')")
        connection.commit()
    with closing(sqlite3.connect(str(source.engine.url.database))) as connection:
        connection.execute("INSERT INTO events VALUES (9, 'a', NULL, 'c')")
        connection.commit()

    with pytest.raises(PersistenceError, match="row 9 of events is damaged: its value of payload"):
        copy_database(source, target)

    assert is_empty(target)


def test_the_error_names_a_row_that_postgresql_cannot_store(to_postgresql: tuple[Database, Database]) -> None:
    source, target = to_postgresql
    with source.engine.begin() as connection:
        add(connection, events, (9, "a", "secret\0", "c"))

    with pytest.raises(PersistenceError, match="row 9 of events holds a NUL character") as caught:
        copy_database(source, target)

    assert "secret" not in str(caught.value)
    assert is_empty(target)


def test_an_sqlite_file_can_store_that_row(files: tuple[Database, Database]) -> None:
    source, target = files
    with source.engine.begin() as connection:
        add(connection, events, (9, "a", "a\0b", "c"))

    assert copy_database(source, target) == 6
    assert rows_of(target) == rows_of(source)


@pytest.mark.parametrize("pair", [("file", "postgresql"), ("postgresql", "file")], indirect=True, ids="-".join)
def test_events_that_are_appended_to_the_source_meanwhile_are_not_copied(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 2)
    source, target = pair
    before = rows_of(source)

    def append(done: int, total: int) -> None:
        source.events.append_all([ProjectRenamed(project_id=PROJECT, name=str(done))], command_id=uuid4())
        source.settings.set("theme", done)

    assert copy_database(source, target, append) == 5
    assert rows_of(target) == before
    assert source.events.last_sequence() == 11


@pytest.mark.postgresql_too("locks")
@pytest.mark.parametrize("pair", [("file", "postgresql"), ("postgresql", "file")], indirect=True, ids="-".join)
def test_other_writers_of_the_target_wait_for_the_copy(pair: tuple[Database, Database]) -> None:
    source, target = pair
    with ThreadPoolExecutor(2) as pool, Database.open(url=target.engine.url, maintain_projections=False) as other:
        later = [ProjectRenamed(project_id=PROJECT, name="later")]
        writers: list[Future[Any]] = []

        def write(done: int, total: int) -> None:
            if not writers:  # the events have been copied, the settings have not
                writers.append(pool.submit(other.events.append_all, later))
                writers.append(pool.submit(other.settings.set, "theme", "later"))
                assert not wait(writers, timeout=0.3).done

        assert copy_database(source, target, write) == 5

        assert writers[0].result(PATIENCE)[0].sequence == 6
        writers[1].result(PATIENCE)
        assert target.settings.get("theme") == "later"


def test_a_locked_target_is_unavailable(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "0.05")
    with Database.open(url=prepare("file")) as source, Database.open(url=prepare("file")) as target:
        with closing(sqlite3.connect(str(target.engine.url.database))) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                copy_database(source, target)
        copy_database(source, target)


def test_the_error_for_a_lost_commit(to_postgresql: tuple[Database, Database]) -> None:
    source, target = to_postgresql
    run(
        target.engine,
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON settings DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION die()",
    )

    with pytest.raises(StoreUnavailable, match="may have taken place: copy again"):
        copy_database(source, target)

    assert is_empty(target)
    run(target.engine, "DROP TRIGGER die ON settings")
    assert copy_database(source, target) == 5


any_text = st.text(st.characters(codec="utf-8", exclude_characters="\\"), max_size=20)
numbers = st.integers(0, 2**63 - 1)
small_numbers = st.integers(0, 2**31 - 1)


any_rows = st.fixed_dictionaries(
    {
        table: st.lists(row, max_size=5, unique_by=lambda row: row[0])
        for table, row in {
            events: st.tuples(st.integers(1, 2**62), any_text, any_text, any_text),
            removed_events: st.tuples(numbers, numbers, any_text, any_text),
            merged_events: st.tuples(numbers, small_numbers, any_text),
            redactions: st.tuples(small_numbers, any_text, any_text, any_text, any_text, numbers),
            redacted_events: st.tuples(numbers, small_numbers),
            settings: st.tuples(any_text, any_text),
            command_receipts: st.tuples(any_text, numbers, small_numbers, any_text),
            subscription_positions: st.tuples(any_text, numbers, any_text),
        }.items()
    }
)


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_the_index_of_earlier_rows_of_the_target_is_removed(prepare: Prepare, kind: str) -> None:
    trigger = "events_refuse_delete" if kind == "file" else "events_refuse_change ON events"
    other, query = UUID(int=7), EventQuery(project_id=PROJECT)
    with (
        Database.open(url=prepare("file")) as source,
        Database.open(url=prepare(kind), maintain_projections=False) as target,
    ):
        populate(source)
        target.events.append_all([ProjectRenamed(project_id=other, name="x") for _ in range(2_000)])
        assert list(target.events.stream(query=query)) == []
        run(target.engine, f"DROP TRIGGER {trigger}")
        run(target.engine, "DELETE FROM events")

        assert copy_database(source, target) > 0
        assert [s.sequence for s in target.events.stream(query=query)] == [1, 2]


@pytest.mark.postgresql_too("what a transaction undoes, and the types of columns")
@pytest.mark.parametrize("examples", [3, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_any_rows_are_copied_or_refused(prepare: Prepare, kind: str, examples: int) -> None:
    with Database.open(url=prepare("file")) as source, Database.open(url=prepare(kind)) as target:
        run(source.engine, "DROP TRIGGER events_refuse_delete")
        on_file = kind == "file"
        run(target.engine, f"DROP TRIGGER {'events_refuse_delete' if on_file else 'events_refuse_change ON events'}")

        @given(any_rows)
        @hypothesis_settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        def check(rows: dict[Table, list[tuple[Any, ...]]]) -> None:
            with target.engine.begin() as cleared, source.engine.begin() as filled:
                for table in COPIED_TABLES:
                    cleared.execute(table.delete())
                    filled.execute(table.delete())
                    for row in rows[table]:
                        add(filled, table, row)
            if not on_file and "\\x00" in repr(rows):
                with pytest.raises(PersistenceError, match="NUL"):
                    copy_database(source, target)
                assert is_empty(target)
            else:
                assert copy_database(source, target) == len(rows[events])
                assert rows_of(target) == rows_of(source)

        check()
