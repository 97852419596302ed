"""A rebuild of an SQLite file fills side tables in short transactions, and exchanges their rows with the old ones."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from helpers import processes, projection_processes
from helpers.agent_session import long_session
from helpers.orchestration_scene import (
    NEW,
    PROJECT,
    SCENE,
    THREAD,
    Opener,
    another,
    change,
    failures_of_rebuilds_at_once,
    found,
    renamed,
)
from helpers.word_count_projection import SCENE as WORDS_SCENE
from helpers.word_count_projection import WordCount, words
from sqlalchemy import Connection, DefaultClause, Engine, MetaData, Table, event, text, update

from peon.orchestration import ProjectDeleted, TurnStarted
from peon.persistence import Database, schema
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.backends import sqlite_side_tables
from peon.persistence.backends.side_tables import SIDE_PREFIX
from peon.persistence.backends.sqlite import SQLiteBackend
from peon.persistence.log import pages
from peon.persistence.projections import rebuilding, steps

KILLS = 24
"""Points of a rebuild at which a process is killed, with the same number of statements between them."""


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends each transaction after a statement, which copies or deletes two rows."""
    monkeypatch.setattr(steps, "STEP_SECONDS", -1.0)
    monkeypatch.setattr(sqlite_side_tables, "ROWS_A_STATEMENT", 2)


@pytest.fixture
def database(open_empty_file: Opener) -> Database:
    """Returns a file with a session, whose rows were changed by hand."""
    database = open_empty_file()
    database.events.append_all(long_session(5))
    tamper(database)
    return database


def tamper(database: Database) -> None:
    change(database, update(schema.projection_threads).values(title="tampered"))


def rows_of_schema(database: Database) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(str(database.engine.url.database))) as connection:
        return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()


def require_sound(database: Database) -> None:
    assert database.projections.verify() == []
    assert [row for row in rows_of_schema(database) if SIDE_PREFIX in row[1]] == []
    with closing(sqlite3.connect(str(database.engine.url.database))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@contextmanager
def before_each_transaction(database: Database, listener: Callable[[], object]) -> Iterator[None]:
    """Calls the listener before each transaction that writes, while there are side tables."""
    begin = SQLiteBackend.begin_writing
    listening = [True]

    def begin_writing(self: SQLiteBackend, connection: Connection) -> None:
        if listening[0] and any(SIDE_PREFIX in row[1] for row in rows_of_schema(database)):
            listening[0] = False
            listener()
            listening[0] = True
        begin(self, connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SQLiteBackend, "begin_writing", begin_writing)
        yield


@pytest.mark.usefixtures("short_steps")
class TestSteps:
    def test_copy_and_delete_a_few_rows_each(self, database: Database) -> None:
        changed: dict[str, list[int]] = {"INSERT": [], "DELETE": []}
        in_transaction: list[int] = [0]
        most: list[int] = []

        def count(_: object, cursor: Any, statement: str, *__: object) -> None:
            if SIDE_PREFIX in statement and (kind := statement.split()[0]) in changed:
                changed[kind].append(cursor.rowcount)
                in_transaction[0] += cursor.rowcount

        def note(_: Connection) -> None:
            most.append(in_transaction[0])
            in_transaction[0] = 0

        event.listen(database.engine, "after_cursor_execute", count)
        event.listen(database.engine, "commit", note)
        database.projections.rebuild()
        event.remove(database.engine, "after_cursor_execute", count)
        event.remove(database.engine, "commit", note)

        assert max(most) == 2
        with database.engine.connect() as connection:
            rows = connection.scalar(text("SELECT count(*) FROM projection_messages"))
        assert rows
        assert sum(changed["INSERT"]) > rows
        assert sum(changed["DELETE"]) > rows / 2
        require_sound(database)

    def test_include_what_is_appended_between_them(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "PAGE_EVENTS", 2)
        remaining = iter([*SCENE, renamed("last"), ProjectDeleted(project_id=PROJECT)])
        titles = text("SELECT count(*) FROM projection_threads WHERE title = 'tampered'")
        old: list[bool] = []

        with another(database) as other:

            def append() -> None:
                with other.read_transaction() as connection:
                    old.append(bool(connection.scalar(titles)))
                for appended in remaining:
                    other.events.append_all([appended])
                    break

            with before_each_transaction(database, append):
                database.projections.rebuild()

        assert next(remaining, None) is None
        assert old == sorted(old, reverse=True)
        assert set(old) == {True, False}
        require_sound(database)

    def test_keep_rows_that_an_append_deletes_from_the_real_tables(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.events.append_all(SCENE)
        follow = rebuilding.Rebuild._follow

        def append_and_follow(*args: Any) -> int:
            with another(database) as other:
                other.events.append_all([TurnStarted(turn_id=NEW, thread_id=THREAD)])
                other.events.append_all([ProjectDeleted(project_id=PROJECT)])
            return follow(*args)

        monkeypatch.setattr(rebuilding.Rebuild, "_follow", append_and_follow)
        database.projections.rebuild()

        require_sound(database)  # without a problem, as the turn began in a thread that was there

    def test_are_done_again_when_the_tables_have_changed(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "peon")
        statements = iter(["CREATE INDEX of_ones_own ON projection_turns (status, started_at)"])

        def migrate() -> None:
            for statement in statements:
                with closing(sqlite3.connect(str(database.engine.url.database))) as connection:
                    connection.execute(statement)

        with before_each_transaction(database, migrate):
            database.projections.rebuild()

        assert "its tables have changed meanwhile" in caplog.text
        assert "of_ones_own" in {row[1] for row in rows_of_schema(database)}
        require_sound(database)

    def test_of_two_rebuilds_at_once(self, database: Database) -> None:
        assert failures_of_rebuilds_at_once(database) == []
        require_sound(database)


class TestExchange:
    def test_in_an_event_loop(self, database: Database) -> None:
        async def rebuild() -> None:
            async with await AsyncDatabase.open(url=database.engine.url) as opened:
                await asyncio.gather(opened.projections.rebuild(), opened.projections.rebuild())

        asyncio.run(rebuild())

        require_sound(database)

    def test_keeps_everything_but_the_rows(self, database: Database) -> None:
        with database.engine.begin() as connection:
            for statement in (
                "CREATE INDEX of_ones_own ON projection_turns (status, started_at)",
                "CREATE VIEW titles AS SELECT title FROM projection_threads",
                "CREATE TRIGGER renaming AFTER UPDATE OF name ON projection_projects BEGIN SELECT 1; END",
            ):
                connection.execute(text(statement))
        before = rows_of_schema(database)

        database.projections.rebuild()

        assert rows_of_schema(database) == before
        with database.engine.connect() as connection:
            assert "tampered" not in set(connection.scalars(text("SELECT title FROM titles")))
        require_sound(database)

    def test_leaves_the_rows_of_a_transaction_that_reads(self, database: Database) -> None:
        titles = text("SELECT DISTINCT title FROM projection_threads")
        with database.read_transaction() as connection:
            assert connection.scalars(titles).all() == ["tampered"]
            with another(database) as other:
                other.projections.rebuild()
            assert connection.scalars(titles).all() == ["tampered"]
        require_sound(database)

    def test_is_undone_when_the_last_transaction_fails(self, database: Database) -> None:
        before = found(database)

        def fail(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("INSERT INTO projection_positions"):
                raise LookupError

        event.listen(database.engine, "before_cursor_execute", fail)
        with pytest.raises(LookupError):
            database.projections.rebuild()
        event.remove(database.engine, "before_cursor_execute", fail)

        assert found(database) == before
        assert [row for row in rows_of_schema(database) if SIDE_PREFIX in row[1]] == []
        database.events.append_all(SCENE)
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        database.projections.rebuild()
        require_sound(database)


def with_a_default() -> list[Table]:
    metadata = MetaData()
    copies = [table.to_metadata(metadata) for table in WordCount.tables]
    metadata.tables[words.name].c.count.server_default = DefaultClause("0")
    return copies


class WithAnotherDefault(WordCount):
    version = 2
    tables = with_a_default()


class SameTables(WordCount):
    version = 2


class TestNewVersion:
    """Of a projection whose tables are created by Peon, and not by a migration."""

    @pytest.mark.parametrize(("newer", "exchanged"), [(SameTables, True), (WithAnotherDefault, False)])
    def test_exchanges_the_rows_of_tables_that_are_the_same(
        self, open_empty_file: Opener, newer: type[WordCount], exchanged: bool
    ) -> None:
        database = open_empty_file(projections=[WordCount()])
        database.events.append_all(WORDS_SCENE)
        created: list[str] = []

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith(f'CREATE TABLE "{SIDE_PREFIX}'):
                created.append(statement)

        event.listen(Engine, "before_cursor_execute", note)
        with another(database, projections=[newer()]) as opened:
            assert opened.projections.verify() == []
        event.remove(Engine, "before_cursor_execute", note)

        assert bool(created) is exchanged
        (sql,) = [row[3] for row in rows_of_schema(database) if row[:2] == ("table", words.name)]
        assert ("DEFAULT" in sql) is (not exchanged)


@pytest.mark.slow
def test_a_killed_rebuild_changes_nothing_and_leaves_nothing_that_the_next_one_keeps(database: Database) -> None:
    address = database.engine.url.render_as_string()
    statements = processes.run(projection_processes.statements_of_rebuild, address)
    sound = found(database)
    tamper(database)
    old = found(database)
    left = []
    replaced = []
    for number in range(1, statements, max(statements // KILLS, 1)):
        codes = processes.exit_codes(projection_processes.rebuild_and_die, [(address, number)])
        assert codes != [None]
        state = found(database)
        assert state in (old, sound)
        replaced.append(state == sound)
        left.append(any(SIDE_PREFIX in row[1] for row in rows_of_schema(database)))
        if state == sound:
            tamper(database)

    assert replaced == sorted(replaced)
    assert set(replaced) == {False, True}
    assert True in left
    database.projections.rebuild()
    require_sound(database)
