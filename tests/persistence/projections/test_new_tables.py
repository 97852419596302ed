"""A rebuild on PostgreSQL fills new tables, which take the places of the old ones in the transaction that ends it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import processes, projection_processes
from helpers.agent_session import long_session
from helpers.orchestration_scene import PROJECT, SCENE, another, change, failures_of_rebuilds_at_once, found, renamed
from helpers.postgresql_schemas import MigratedSchemas, in_schema
from helpers.slow_proofs import rest_is_slow
from helpers.word_count_projection import SCENE as WORDS_SCENE
from helpers.word_count_projection import WordCount, words
from sqlalchemy import URL, Column, Connection, Engine, Index, MetaData, Table, Text, event, inspect, text, update
from sqlalchemy.exc import DBAPIError

from peon.persistence import Database, schema
from peon.persistence.backends import postgresql_new_tables
from peon.persistence.backends.postgresql_new_tables import PostgreSQLNewTables
from peon.persistence.backends.side_tables import SIDE_PREFIX
from peon.persistence.projections import rebuilding

KILLS = 24
"""Points of a rebuild at which a process is killed, with the same number of statements between them."""

_TABLES = "FROM pg_class WHERE relnamespace = CAST(current_schema() AS regnamespace)"

_PRIVILEGES = "ARRAY(SELECT CAST(entry AS text) FROM unnest(relacl) AS entry ORDER BY 1)"

_COLUMNS = (
    "JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 "
    "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE"
)


@pytest.fixture(autouse=True)
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a rebuild treat a few rows like many."""
    monkeypatch.setattr(rebuilding, "FEW_ROWS", 0)


@pytest.fixture
def url(postgresql_server: URL, migrated_schemas: MigratedSchemas, statements_for_postgresql: str) -> Iterator[URL]:
    """Returns the address of a schema that no other test uses afterwards."""
    schema = migrated_schemas.take(statements_for_postgresql)
    yield in_schema(postgresql_server, schema)
    migrated_schemas.drop(schema)


@pytest.fixture
def database(url: URL) -> Iterator[Database]:
    """Returns a database with a session, whose rows were changed by hand."""
    with Database.open(url=url) as database:
        database.events.append_all([*long_session(5), *SCENE])
        tamper(database)
        yield database


def tamper(database: Database) -> None:
    change(database, update(schema.projection_threads).values(title="tampered"))


def titles(connection: Connection) -> set[Any]:
    return set(connection.scalars(text("SELECT title FROM projection_threads")))


def identity(database: Database, table: str = "projection_threads") -> object:
    """Returns a number that a table keeps as long as it is not replaced."""
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT CAST(CAST(:name AS regclass) AS oid)"), {"name": table})


def description(database: Database) -> list[Any]:
    """Returns all that is declared, with its names and privileges."""
    with database.engine.connect() as connection:
        names = connection.execute(text(f"SELECT relname, relkind, reloptions, {_PRIVILEGES} {_TABLES} ORDER BY 1"))
        definitions = connection.scalars(text(f"SELECT pg_get_indexdef(oid) {_TABLES} AND relkind = 'i' ORDER BY 1"))
        constraints = connection.execute(
            text(
                "SELECT CAST(conrelid AS regclass), conname, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE connamespace = CAST(current_schema() AS regnamespace) ORDER BY CAST(CAST(conrelid AS regclass) "
                "AS text), conname"
            )
        )
        columns = connection.execute(
            text(
                "SELECT relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, "
                f"pg_get_expr(adbin, adrelid) {_TABLES.replace('WHERE', _COLUMNS)} AND relkind = 'r' ORDER BY 1, 2"
            )
        )
        return [names.all(), definitions.all(), constraints.all(), columns.all()]


def require_sound(database: Database) -> None:
    assert database.projections.verify() == []
    with database.engine.connect() as connection:
        assert connection.scalars(text(f"SELECT relname {_TABLES} AND relname LIKE '{SIDE_PREFIX}%'")).all() == []


@contextmanager
def calling(listener: Any, name: str = "fill") -> Iterator[None]:
    """Calls the listener before the rebuild performs one of its steps."""
    step = getattr(PostgreSQLNewTables, name)

    def called(*arguments: Any) -> Any:
        listener()
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PostgreSQLNewTables, name, called)
        yield


class TestReplacement:
    def test_keeps_everything_but_the_rows(self, database: Database) -> None:
        change(
            database,
            text("CREATE INDEX of_ones_own ON projection_turns (status, started_at) WHERE status LIKE 'run%'"),
            text('CREATE UNIQUE INDEX "another\'s own" ON projection_threads (lower(id))'),
            text("ALTER TABLE projection_messages SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05)"),
            text("ALTER TABLE projection_messages ADD CONSTRAINT placed CHECK (sequence >= 0)"),
            text("ALTER TABLE projection_threads ALTER COLUMN title SET DEFAULT 'none: 100%'"),
            text("GRANT SELECT ON projection_threads TO PUBLIC"),
            text("GRANT SELECT, UPDATE ON projection_turns TO pg_monitor WITH GRANT OPTION"),
            text("REVOKE DELETE ON projection_projects FROM CURRENT_USER"),
        )
        before, old = description(database), identity(database)

        database.projections.rebuild()

        assert description(database) == before
        assert identity(database) != old
        with database.engine.connect() as connection:
            assert "tampered" not in titles(connection)
        change(database, text("GRANT DELETE ON projection_projects TO CURRENT_USER"))
        require_sound(database)

    @pytest.mark.slow
    def test_gives_no_default_privileges(self, database: Database) -> None:
        with database.engine.connect() as connection:
            name = connection.scalar(text("SELECT current_schema()"))
        change(database, text(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT ALL ON TABLES TO PUBLIC"))

        database.projections.rebuild()

        query = "SELECT has_table_privilege('pg_monitor', 'projection_threads', 'SELECT')"
        with database.engine.connect() as connection:
            assert connection.scalar(text(query)) is False

    @pytest.mark.slow
    def test_leaves_keys_that_refer_to_the_new_tables(self, database: Database) -> None:
        database.projections.rebuild()
        change(database, text("DELETE FROM projection_projects"))

        with database.engine.connect() as connection:
            assert titles(connection) == set()
            with pytest.raises(DBAPIError, match="foreign key"):
                connection.execute(
                    text(
                        "INSERT INTO projection_turns (id, thread_id, status, started_at, sequence) "
                        "VALUES ('t', 'none', 'running', 'now', 1)"
                    )
                )

    def test_lets_the_server_know_how_many_rows_there_are(self, database: Database) -> None:
        database.projections.rebuild()

        with database.engine.connect() as connection:
            rows = connection.scalar(text("SELECT count(*) FROM projection_messages"))
            known = connection.scalar(text(f"SELECT reltuples {_TABLES} AND relname = 'projection_messages'"))
        assert rows == known > 0

    def test_includes_what_is_appended_meanwhile(self, database: Database) -> None:
        names = iter(["while it is filled", "before it is locked"])

        def append() -> None:
            with another(database) as other:
                other.events.append_all([renamed(next(names))])

        with calling(append, "fill"), calling(append, "try_to_replace"):
            database.projections.rebuild()

        assert next(names, None) is None
        project = database.read_model.project(PROJECT)
        assert project is not None
        assert project.name == "before it is locked"
        assert database.projections.position() == database.events.last_sequence()
        require_sound(database)

    def test_of_two_rebuilds_at_once(self, database: Database) -> None:
        assert failures_of_rebuilds_at_once(database) == []
        require_sound(database)

    @pytest.mark.slow
    def test_is_done_again_when_the_tables_have_changed(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "peon")
        statements = iter([text("CREATE INDEX of_ones_own ON projection_turns (status, started_at)")])

        def migrate() -> None:
            for statement in statements:
                with another(database) as other:
                    change(other, statement)

        with calling(migrate):
            database.projections.rebuild()

        assert "its tables have changed meanwhile" in caplog.text
        assert "of_ones_own" in {index["name"] for index in inspect(database.engine).get_indexes("projection_turns")}
        require_sound(database)

    @pytest.mark.parametrize(
        "statement",
        rest_is_slow(
            [
                "CREATE VIEW named AS SELECT title FROM projection_threads",
                "COMMENT ON TABLE projection_threads IS 'what agents work in'",
                "GRANT SELECT (title) ON projection_threads TO PUBLIC",
            ],
            first=1,
        ),
    )
    def test_keeps_what_is_added_to_the_old_tables_meanwhile(self, database: Database, statement: str) -> None:
        statements = iter([text(statement)])
        added: list[Any] = []

        def add() -> None:
            for each in statements:
                with another(database) as other:
                    change(other, each)
                    added.extend(description(other))

        old = identity(database)
        with calling(add):
            database.projections.rebuild()

        assert (description(database), identity(database)) == (added, old)
        with database.engine.connect() as connection:
            assert "tampered" not in titles(connection)

    @pytest.mark.slow
    def test_waits_for_a_vacuum_of_large_values(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgresql_new_tables, "LOCK_MILLISECONDS", 10)
        attempts: list[bool] = []
        try_to_replace = PostgreSQLNewTables.try_to_replace
        query = (
            "SELECT CAST(CAST(reltoastrelid AS regclass) AS text) FROM pg_class WHERE oid = CAST(:table AS regclass)"
        )
        with database.engine.connect() as connection:
            values = connection.scalar(text(query), {"table": "projection_messages"})
            assert values is not None

            def note(self: PostgreSQLNewTables, rebuilding_connection: Connection) -> bool:
                if len(attempts) == 1:
                    connection.rollback()
                attempts.append(try_to_replace(self, rebuilding_connection))
                return attempts[-1]

            monkeypatch.setattr(PostgreSQLNewTables, "try_to_replace", note)
            with another(database) as other:
                connection.execute(text(f"SELECT count(*) FROM {values}"))  # a vacuum has a stronger lock
                other.projections.rebuild()

        assert attempts == [False, True]
        require_sound(database)

    @pytest.mark.slow
    def test_applies_events_to_the_tables_if_the_code_of_the_projection_needs_tables(self, url: URL) -> None:
        """A view has no constraints to name."""

        class Named(WordCount):
            def apply(self, connection: Connection, events: Any) -> Any:
                connection.execute(
                    text(
                        f"INSERT INTO {words.name} SELECT * FROM {words.name} WHERE false "
                        f"ON CONFLICT ON CONSTRAINT {key} DO NOTHING"
                    )
                )
                return super().apply(connection, events)

        key = f"{words.name}_pkey"
        with Database.open(url=url, projections=[Named()]) as database:
            database.events.append_all(WORDS_SCENE)

            def append() -> None:
                with another(database, projections=[Named()]) as other:
                    other.events.append_all([renamed("meanwhile")])

            with calling(append, "fill"):
                database.projections.rebuild()

            assert database.projections.verify() == []

    def test_is_undone_when_the_last_statement_fails(self, database: Database) -> None:
        before, old = found(database), identity(database)

        def fail(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("INSERT INTO projection_positions"):
                raise LookupError

        event.listen(database.engine, "before_cursor_execute", fail)
        with pytest.raises(LookupError):
            database.projections.rebuild()
        event.remove(database.engine, "before_cursor_execute", fail)

        assert (found(database), identity(database)) == (before, old)
        database.projections.rebuild()
        require_sound(database)


class TestReaders:
    """Readers with one snapshot see the old rows until their end, or the new ones; never too few."""

    def test_are_waited_for(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgresql_new_tables, "LOCK_MILLISECONDS", 10)
        attempts: list[bool] = []
        try_to_replace = PostgreSQLNewTables.try_to_replace
        tried_again = threading.Event()

        def note(self: PostgreSQLNewTables, connection: Connection) -> bool:
            attempts.append(try_to_replace(self, connection))
            if len(attempts) == 2:
                tried_again.set()
            return attempts[-1]

        monkeypatch.setattr(PostgreSQLNewTables, "try_to_replace", note)
        with another(database) as other:
            thread = threading.Thread(target=other.projections.rebuild)
            with database.read_transaction() as connection:
                # It has a snapshot, and has not read the table yet.
                events = connection.scalar(text("SELECT count(*) FROM events"))
                thread.start()
                assert tried_again.wait(processes.PATIENCE)
                database.events.append_all([renamed("while the rebuild waits")])
                assert titles(connection) == {"tampered"}
                assert connection.scalar(text("SELECT count(*) FROM events")) == events
            thread.join(processes.PATIENCE)

        assert attempts[:2] == [False, False]
        assert attempts[-1]
        with database.read_transaction() as connection:
            assert "tampered" not in titles(connection)
        require_sound(database)

    def test_that_come_while_the_tables_are_replaced_see_the_new_rows(self, database: Database) -> None:
        seen: list[set[Any]] = []
        threads: list[threading.Thread] = []

        def read() -> None:
            with another(database, maintain_projections=False) as other, other.read_transaction() as connection:
                connection.scalar(text("SELECT count(*) FROM events"))
                seen.append(titles(connection))

        def begin_to_read(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("ALTER") and "RENAME TO" in statement and not threads:  # the old ones are dropped
                threads.append(threading.Thread(target=read))
                threads[-1].start()

        event.listen(database.engine, "before_cursor_execute", begin_to_read)
        database.projections.rebuild()
        threads[0].join(processes.PATIENCE)

        with database.read_transaction() as connection:
            assert seen == [titles(connection)]
        assert seen[0] not in (set(), {"tampered"})

    @pytest.mark.slow
    def test_without_end_make_the_rows_be_copied_instead(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(postgresql_new_tables, "LOCK_MILLISECONDS", 10)
        monkeypatch.setattr(rebuilding, "PATIENCE_SECONDS", 0.0)
        before, old = description(database), identity(database)
        with database.read_transaction() as connection:
            assert titles(connection) == {"tampered"}
            with another(database) as other:
                other.projections.rebuild()
            assert titles(connection) == {"tampered"}

        assert "appends wait" in caplog.text
        assert (description(database), identity(database)) == (before, old)
        with database.engine.connect() as connection:
            assert "tampered" not in titles(connection)
        require_sound(database)


WHAT_A_COPY_WOULD_LACK = [
    "CREATE VIEW named AS SELECT title FROM projection_threads",
    "CREATE TABLE noted (id text REFERENCES projection_threads)",
    "CREATE TRIGGER t BEFORE UPDATE ON projection_threads EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE POLICY all_of_them ON projection_threads USING (true)",
    "ALTER TABLE projection_threads ENABLE ROW LEVEL SECURITY",
    "CREATE STATISTICS together ON title, project_id FROM projection_threads",
    "COMMENT ON TABLE projection_threads IS 'what agents work in'",
    "GRANT SELECT (title) ON projection_threads TO PUBLIC",
    "ALTER TABLE projection_threads ALTER COLUMN title SET STATISTICS 500",
    "ALTER TABLE projection_threads REPLICA IDENTITY FULL",
    "CREATE TABLE further () INHERITS (projection_threads)",
    "CREATE TABLE typed (thread projection_threads)",
    "CREATE FUNCTION title() RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT title FROM projection_threads; END",
    "DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO pg_monitor', current_schema); END $$; "  # noqa: ISC004
    "ALTER TABLE projection_threads OWNER TO pg_monitor",
]


@pytest.mark.parametrize("statement", rest_is_slow(WHAT_A_COPY_WOULD_LACK, first=2))
def test_what_would_be_lost_with_the_old_table_keeps_it(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        server: Any = connection.connection.driver_connection
        if "ATOMIC" in statement and server.info.server_version < 140_000:
            pytest.skip("needs PostgreSQL 14")
        connection.execute(text(statement))
    before, old = description(database), identity(database)

    database.projections.rebuild()

    assert (description(database), identity(database)) == (before, old)
    with database.engine.connect() as connection:
        assert "tampered" not in titles(connection)
    require_sound(database)


class SameTables(WordCount):
    version = 2


def changed_copy(change_it: Any) -> list[Table]:
    metadata = MetaData()
    copies = [table.to_metadata(metadata) for table in WordCount.tables]
    change_it(metadata.tables[words.name])
    return copies


class WithAnotherColumn(WordCount):
    version = 2
    tables = changed_copy(lambda table: table.append_column(Column("noted", Text)))


class WithAnotherIndex(WordCount):
    version = 2
    tables = changed_copy(lambda table: Index("by_count", table.c.count, postgresql_where=table.c.count > 1))


@pytest.mark.parametrize(
    ("newer", "replaced"), [(SameTables, True), (WithAnotherColumn, False), (WithAnotherIndex, False)]
)
def test_a_new_version_replaces_tables_that_are_the_same(url: URL, newer: type[WordCount], replaced: bool) -> None:
    with Database.open(url=url, projections=[WordCount()]) as database:
        database.events.append_all(WORDS_SCENE)
    renames: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if f"{SIDE_PREFIX}{words.name} RENAME TO" in statement:
            renames.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    with Database.open(url=url, projections=[newer()]) as opened:
        assert opened.projections.verify() == []
        indexes = {index["name"] for index in inspect(opened.engine).get_indexes(words.name)}
    event.remove(Engine, "before_cursor_execute", note)

    assert bool(renames) is replaced
    assert indexes == {index.name for table in newer.tables for index in table.indexes}


@pytest.mark.slow
def test_a_killed_rebuild_changes_and_leaves_nothing(database: Database) -> None:
    address = database.engine.url.render_as_string(hide_password=False)
    statements = processes.run(projection_processes.statements_of_rebuild, address)
    sound = found(database)
    tamper(database)
    old = found(database)
    replaced = []
    for number in range(1, statements, max(statements // KILLS, 1)):
        codes = processes.exit_codes(projection_processes.rebuild_and_die, [(address, number)])
        assert codes != [None]
        state = found(database)
        assert state in (old, sound)
        replaced.append(state == sound)
        if state == sound:
            tamper(database)

    assert replaced[0] is False
    database.projections.rebuild()
    require_sound(database)
