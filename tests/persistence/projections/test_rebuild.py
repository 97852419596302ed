"""Rebuilding the tables from the log: readers and writers continue, and an interrupted rebuild changes nothing."""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from random import Random

import pytest
from helpers import processes
from helpers.agent_session import long_session
from helpers.orchestration_scene import (
    NEW,
    PROJECT,
    SCENE,
    THREAD,
    UNKNOWN,
    Opener,
    another,
    append_alone,
    change,
    found,
    is_postgresql,
    renamed,
    rows_of_all_tables,
)
from helpers.random_events import batches
from helpers.reference_model import ReferenceModel, State, state_of
from sqlalchemy import URL, Connection, delete, event, insert, text, update

from peon.config import AppConfig
from peon.persistence import Database, schema
from peon.persistence.backends.sqlite import SQLiteBackend
from peon.persistence.log import pages


@contextmanager
def listening(database: Database, name: str, listener: Callable[..., object]) -> Iterator[None]:
    event.listen(database.engine, name, listener)
    yield
    event.remove(database.engine, name, listener)


def tamper(database: Database) -> None:
    change(
        database,
        update(schema.projection_projects).values(name="tampered"),
        delete(schema.projection_approvals),
        insert(schema.projection_turns).values(
            id=str(NEW), thread_id=str(THREAD), status="running", started_at="2026-05-17T00:00:00.000000Z", sequence=99
        ),
    )


@contextmanager
def raising_as_rows_are_put_into(table: str, database: Database, error: type[BaseException]) -> Iterator[None]:
    def interrupt(_: object, __: object, statement: str, *___: object) -> None:
        if re.match(rf"INSERT INTO \S*{table} .* SELECT", statement):
            raise error

    event.listen(database.engine, "before_cursor_execute", interrupt)
    yield
    event.remove(database.engine, "before_cursor_execute", interrupt)


@pytest.mark.usefixtures("small_pages")
class TestRebuild:
    def test_repairs_tampered_tables(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        database.projections.catch_up()
        sound = rows_of_all_tables(database)
        tamper(database)
        change(database, delete(schema.projection_positions), delete(schema.projection_problems))

        database.projections.rebuild()

        assert rows_of_all_tables(database) == sound

    def test_reports_progress_after_each_page(self, database: Database) -> None:
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        database.projections.rebuild(lambda *pair: reported.append(pair))

        assert reported == [(4, 19), (8, 19), (12, 19), (16, 19), (19, 19)]

    def test_rebuilds_from_an_empty_log(self, database: Database) -> None:
        database.projections.rebuild()
        database.events.append_all(SCENE)

        assert database.projections.verify() == []

    @pytest.mark.parametrize("call", [0, 3])
    def test_changes_nothing_when_it_is_interrupted(self, database: Database, call: int) -> None:
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)
        calls = iter(range(call))

        def interrupt(*_: int) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.projections.rebuild(interrupt)

        assert rows_of_all_tables(database) == before
        database.events.append_all([renamed("x")])
        database.projections.rebuild()
        assert database.projections.verify() == []

    @pytest.mark.parametrize("table", ["projection_projects", "projection_branches", "projection_problems"])
    def test_changes_nothing_when_replacing_the_rows_fails(self, database: Database, table: str) -> None:
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)

        with raising_as_rows_are_put_into(table, database, LookupError), pytest.raises(LookupError):
            database.projections.rebuild()

        assert rows_of_all_tables(database) == before
        database.events.append_all([renamed("x")])
        database.projections.rebuild()
        assert database.projections.verify() == []

    def test_control_c_is_not_reported_as_a_database_error(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)

        # SQLAlchemy closes a connection when KeyboardInterrupt ends its statement.
        with raising_as_rows_are_put_into("checkpoints", database, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            database.projections.rebuild()

        assert rows_of_all_tables(database) == before
        database.projections.rebuild()
        assert database.projections.verify() == []

    def test_readers_see_the_old_rows_until_the_last_commit(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        sound = found(database)
        tamper(database)
        tampered = found(database)
        seen: list[State] = []

        with another(database) as reader:
            if not is_postgresql(database):  # there, a reader waits for the commit that replaces the tables
                event.listen(database.engine, "commit", lambda _: seen.append(found(reader)))
            database.projections.rebuild(lambda *_: seen.append(found(reader)))
            after = found(reader)

        assert len(seen) > 3
        # Removing the old rows commits, too.
        replaced = seen.count(sound)
        assert seen == [tampered] * (len(seen) - replaced) + [sound] * replaced
        assert after == sound

    def test_runs_in_one_transaction_on_postgresql(self, open_empty_postgresql: Opener) -> None:
        """Behind a pooler, the next transaction may run in another session, without the temporary tables."""
        database = open_empty_postgresql()
        database.events.append_all(SCENE)
        database.events.close()
        commits: list[Connection] = []
        temporary_tables = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"

        with listening(database, "commit", commits.append):
            database.projections.rebuild()

        assert len(commits) == 1
        with database.engine.connect() as connection:  # the only one in the pool
            assert connection.scalar(text("SELECT pg_my_temp_schema()")) != 0
            assert connection.scalar(text(temporary_tables)) == 0

    @pytest.mark.postgresql_too("what concurrent transactions see")
    @pytest.mark.parametrize("call", [0, 3])
    def test_a_connection_that_keeps_its_temporary_tables_is_discarded(self, open_lasting: Opener, call: int) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        before = found(database)
        database.events.close()  # leaves one connection in the pool
        calls = iter(range(call))

        def interrupt(*_: int) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        def fail_to_drop(_: object, __: object, statement: str, *___: object) -> None:
            if statement.lstrip().startswith("DROP TABLE"):
                raise LookupError

        # PostgreSQL drops them at the end of the transaction.
        error = KeyboardInterrupt if is_postgresql(database) else LookupError
        with listening(database, "before_cursor_execute", fail_to_drop), pytest.raises(error):
            database.projections.rebuild(interrupt)

        assert found(database) == before
        assert database.projections.verify() == []

    def test_fails_for_no_writer_after_its_commit(
        self, migrated_sqlite_url: URL, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            Database.open(AppConfig(database={"busy_timeout": 0.05}), url=migrated_sqlite_url) as database,
            closing(sqlite3.connect(str(migrated_sqlite_url.database), isolation_level=None)) as writer,
        ):
            database.events.append_all(SCENE)
            begin = SQLiteBackend.begin_writing

            def write(self: SQLiteBackend, connection: Connection) -> None:
                # The position is that of the end of the log again when the new rows have replaced the old ones.
                if writer.execute("SELECT count(*) FROM projection_positions WHERE sequence > 0").fetchone()[0]:
                    writer.execute("BEGIN IMMEDIATE")
                begin(self, connection)

            change(database, update(schema.projection_positions).values(sequence=0))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SQLiteBackend, "begin_writing", write)
                database.projections.rebuild()

            assert writer.in_transaction
            assert "could not be removed" in caplog.text
            writer.execute("ROLLBACK")
            database.projections.rebuild()
            assert writer.execute("SELECT name FROM sqlite_master WHERE name LIKE 'peon_rebuild_%'").fetchall() == []
            assert database.projections.verify() == []

    @pytest.mark.postgresql_too("what concurrent transactions see")
    def test_a_reader_sees_the_old_or_the_new_state(self, open_lasting: Opener) -> None:
        database = open_lasting()
        events = long_session(10)
        database.events.append_all(events)
        change(database, update(schema.projection_projects).values(name="tampered"), delete(schema.projection_commits))
        tampered = database.read_model.snapshot()
        seen = [tampered]
        stop, reading = threading.Event(), threading.Event()

        def read() -> None:
            with another(database) as reader:
                while not stop.is_set():
                    snapshot = reader.read_model.snapshot()
                    if snapshot != seen[-1]:
                        seen.append(snapshot)
                    reading.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(processes.PATIENCE)
        database.projections.rebuild()
        stop.set()
        thread.join()

        model = ReferenceModel()
        model.follow_all(events)
        assert seen in ([tampered], [tampered, model.snapshot()])
        assert database.read_model.snapshot() == model.snapshot()

    @pytest.mark.postgresql_too("what concurrent transactions see")
    def test_includes_events_that_are_appended_during_it(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        with another(database) as other, another(database, maintain_projections=False) as alone:

            def append(done: int, total: int) -> None:
                reported.append((done, total))
                if len(reported) <= 3:
                    other.events.append_all([renamed(f"other {done}")])
                    alone.events.append_all([renamed(f"alone {done}")])

            database.projections.rebuild(append)

        assert database.read_model.project(PROJECT).name == "alone 12"  # type: ignore[union-attr]
        assert database.projections.position() == len(SCENE) + 6
        assert database.projections.verify() == []
        assert reported[-1] == (len(SCENE) + 6, len(SCENE) + 6)

    @pytest.mark.postgresql_too("what concurrent transactions see")
    def test_includes_events_that_are_appended_after_it_read_to_the_end(
        self, open_lasting: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        waiting = [renamed("just in time")]
        ends: list[int] = []
        read_page = pages.LogPages.read_page

        with another(database) as other:

            def read_and_append(self: pages.LogPages, connection: Connection, after: int) -> list[pages.LogRow]:
                page = read_page(self, connection, after)
                # The second read at the same end is the last one that does not block appends.
                if not page and after in ends and waiting:
                    other.events.append_all([waiting.pop()])
                if not page:
                    ends.append(after)
                return page

            monkeypatch.setattr(pages.LogPages, "read_page", read_and_append)
            database.projections.rebuild()

        assert waiting == []
        assert database.read_model.project(PROJECT).name == "just in time"  # type: ignore[union-attr]
        assert database.projections.position() == len(SCENE) + 1
        assert database.projections.verify() == []

    @pytest.mark.slow
    def test_loses_no_event_of_a_thread_that_keeps_appending(self, open_lasting: Opener) -> None:
        database = open_lasting()
        remaining = batches(Random(7), long_session(10), (1, 2, 5))
        stop, appending = threading.Event(), threading.Event()

        def append() -> None:
            with another(database) as other:
                for number, batch in enumerate(remaining):
                    if stop.is_set():
                        return
                    other.events.append_all(batch)
                    if number == 5:
                        appending.set()

        thread = threading.Thread(target=append)
        thread.start()
        assert appending.wait(processes.PATIENCE)
        for _ in range(2):
            database.projections.rebuild()
        stop.set()
        thread.join()

        model = ReferenceModel()
        model.follow_all(stored.event for stored in database.events.stream())
        assert state_of(database.read_model, model.approvals) == model.state()
        assert database.projections.verify() == []
