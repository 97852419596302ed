"""Databases of every age come to the newest revision, whole, or stay as they were."""

import ast
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from helpers import migration_processes, processes
from sqlalchemy import URL, Engine, MetaData, inspect, select, text

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database, MigrationFailed, SchemaOutOfDate, SchemaTooNew, StoreUnavailable, upgrade
from peon.persistence.backends.engine import create_engine
from peon.persistence.migrations import alembic_folder, migration_transaction, revisions

FROZEN = Path(__file__).parents[1] / "data" / "databases"
FUTURE = "999_future"

Schema = list[tuple[Any, ...]]
Rows = dict[str, list[dict[str, Any]]]

POSTGRESQL_CATALOGUE = """
SELECT table_name, row_number() OVER (PARTITION BY table_name ORDER BY ordinal_position), column_name,
     data_type, is_nullable, column_default, identity_generation
FROM information_schema.columns WHERE table_schema = current_schema();

SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = current_schema()::regnamespace;

SELECT replace(indexdef, current_schema() || '.', '')
FROM pg_indexes WHERE schemaname = current_schema();

SELECT replace(pg_get_triggerdef(t.oid), current_schema() || '.', '')
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace;

SELECT proname, prosrc
FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
"""


@pytest.fixture
def populated_url(sqlite_url: URL) -> URL:
    """A database at the first revision, with rows in every table."""
    thaw("001_initial", file_of(sqlite_url))
    return sqlite_url


@pytest.fixture
def an_event() -> OrchestrationEvent:
    return ProjectRenamed(project_id=uuid4(), name="new")


def thaw(revision: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FROZEN / f"{revision}.db", path)
    path.chmod(0o600)
    return path


def file_of(url: URL) -> Path:
    return Path(str(url.database))


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def engine_of(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def schema_of(url: URL) -> Schema:
    """Everything that a migration could have made, whatever order it was made in."""
    with engine_of(url) as engine, engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
            return [(*row[:3], " ".join(row.sql.split())) for row in connection.execute(text(query))]
        queries = POSTGRESQL_CATALOGUE.split(";")
        return [tuple(row) for query in queries for row in sorted(connection.exec_driver_sql(query))]


def rows_of(url: URL) -> Rows:
    with engine_of(url) as engine, engine.connect() as connection:
        return {
            table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()]
            for table in inspect(connection).get_table_names()
            if table != "alembic_version"
        }


def cut_to(columns: Rows, rows: Rows) -> Rows:
    """The rows, with those tables and columns only that `columns` has."""
    return {
        table: [{name: row[name] for name in columns[table][0]} for row in rows.get(table, [])] for table in columns
    }


def revision_of(url: URL) -> list[str]:
    with engine_of(url) as engine, engine.connect() as connection:
        return list(connection.scalars(text("SELECT version_num FROM alembic_version")))


def state_of(url: URL) -> tuple[Schema, Rows, list[str]]:
    return schema_of(url), rows_of(url), revision_of(url)


def migrate(url: URL, direction: Callable[[Config, str], None], revision: str) -> None:
    config = Config(str(alembic_folder() / "alembic.ini"))
    with engine_of(url) as engine, migration_transaction(engine) as connection:
        config.attributes["connection"] = connection
        direction(config, revision)


def populate(url: URL, revision: str, tmp_path: Path) -> Rows:
    """Brings an empty database to a revision, with the rows of the frozen one in it."""
    rows = rows_of(URL.create("sqlite", database=str(thaw(revision, tmp_path / "thawed" / "peon.db"))))
    migrate(url, command.upgrade, revision)
    reflected = MetaData()
    with engine_of(url) as engine, engine.begin() as connection:
        reflected.reflect(connection)
        for table in reflected.sorted_tables:
            connection.execute(table.delete() if table.name == "append_lock" else select(1))  # has its row already
            for row in rows.get(table.name, []):
                connection.execute(table.insert().values(row))
    assert rows_of(url) == rows
    return rows


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What the revisions are


def test_the_known_revisions_are_those_of_alembic_in_its_order() -> None:
    scripts = ScriptDirectory.from_config(Config(str(alembic_folder() / "alembic.ini")))
    in_order = list(reversed([*scripts.walk_revisions()]))

    assert revisions() == tuple(script.revision for script in in_order)
    assert revisions()[:2] == ("001_initial", "002_append_only")
    assert [Path(script.path).stem for script in in_order] == [script.revision for script in in_order]


def test_a_revision_script_depends_on_nothing_that_may_change_in_peon() -> None:
    for path in (alembic_folder() / "alembic" / "versions").glob("*.py"):
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert {name.partition(".")[0] for name in imported} <= {"alembic", "sqlalchemy"}, path


def test_there_is_a_frozen_database_of_every_revision() -> None:
    assert {path.stem for path in FROZEN.glob("*.db")} == set(revisions())
    assert [name for name in names_in(FROZEN) if name.endswith(("-wal", "-shm"))] == []


# Old databases


@pytest.mark.parametrize("revision", revisions())
def test_a_database_of_any_revision_becomes_like_a_new_one_with_its_rows(
    sqlite_url: URL, tmp_path: Path, revision: str
) -> None:
    thaw(revision, file_of(sqlite_url))
    before = rows_of(sqlite_url)
    assert all(before.values()), "a table without rows shows nothing"
    fresh = sqlite_url.set(database=str(tmp_path / "fresh.db"))
    Database.open(url=fresh, projections=False).close()

    with Database.open(url=sqlite_url, projections=False) as database:
        log = database.events.replay_all()

    assert schema_of(sqlite_url) == schema_of(fresh)
    assert cut_to(before, rows_of(sqlite_url)) == before
    assert revision_of(sqlite_url) == [revisions()[-1]]
    assert [stored.sequence for stored in log] == list(range(1, len(before["events"]) + 1))
    assert len({type(stored.event) for stored in log}) >= 12


@pytest.mark.parametrize("revision", revisions())
def test_a_database_of_any_revision_goes_on_counting(
    sqlite_url: URL, revision: str, an_event: OrchestrationEvent
) -> None:
    thaw(revision, file_of(sqlite_url))

    with Database.open(url=sqlite_url, projections=False) as database:
        last = database.events.last_sequence()
        assert [stored.sequence for stored in database.events.append_all([an_event, an_event])] == [last + 1, last + 2]


def test_an_upgrade_in_steps_ends_where_one_at_once_does(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, revisions()[0], tmp_path)
    for revision in revisions()[1:]:
        migrate(lasting_url, command.upgrade, revision)
        assert cut_to(rows, rows_of(lasting_url)) == rows
    in_steps = schema_of(lasting_url)
    migrate(lasting_url, command.downgrade, "base")

    Database.open(url=lasting_url, projections=False).close()

    assert schema_of(lasting_url) == in_steps


def test_each_revision_can_be_undone_and_done_again(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, revisions()[-1], tmp_path)
    for revision in reversed(revisions()):
        schema = schema_of(lasting_url)
        assert revision_of(lasting_url) == [revision]

        migrate(lasting_url, command.downgrade, "-1")
        left = rows_of(lasting_url)
        assert left == cut_to(left, rows)
        assert schema_of(lasting_url) != schema

        migrate(lasting_url, command.upgrade, "+1")
        assert schema_of(lasting_url) == schema
        assert cut_to(left, rows_of(lasting_url)) == left

        migrate(lasting_url, command.downgrade, "-1")
    assert rows_of(lasting_url) == {}
    assert {row[0] for row in schema_of(lasting_url) if row[0] in ("trigger", "view")} == set()

    with Database.open(url=lasting_url, projections=False) as database:
        assert database.events.replay_all() == []


def test_a_downgrade_by_one_keeps_every_row(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, "002_append_only", tmp_path)

    migrate(lasting_url, command.downgrade, "001_initial")

    assert rows_of(lasting_url) == rows


# Refusals


@pytest.mark.parametrize("revision", [None, "001_initial"])
def test_a_database_out_of_date_is_refused_with_the_command_that_helps(
    lasting_url: URL, tmp_path: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if revision:
        populate(lasting_url, revision, tmp_path)

    with pytest.raises(SchemaOutOfDate) as caught:
        Database.open(url=lasting_url, migrate=False, projections=False)

    assert (caught.value.revision, caught.value.head) == (revision, revisions()[-1])
    assert (revision or "base") in str(caught.value)
    run_advice(caught.value, monkeypatch)
    Database.open(url=lasting_url, migrate=False, projections=False).close()


@pytest.mark.parametrize("name", ["it's my $HOME.db", "a?b=c&d%20#e.db", "größe;`\\n.db"])
def test_the_command_works_for_any_file_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "data" / name))

    with pytest.raises(SchemaOutOfDate) as caught:
        Database.open(url=url, migrate=False, projections=False)

    run_advice(caught.value, monkeypatch)
    Database.open(url=url, migrate=False, projections=False).close()
    assert names_in(tmp_path / "data") == [name]


def run_advice(error: SchemaOutOfDate, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, advice = str(error).partition("Run:  ")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    done = subprocess.run(advice, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.returncode == 0, done.stderr


def test_an_outdated_database_is_refused_at_once_while_another_connection_writes(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        config = AppConfig(database={"busy_timeout": 0})

        with pytest.raises(SchemaOutOfDate):
            Database.open(config, url=populated_url, migrate=False, projections=False)


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_file_of_a_newer_version_is_refused_and_not_touched(sqlite_url: URL, migrate_it: bool) -> None:
    path = thaw(revisions()[-1], file_of(sqlite_url))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [FUTURE])
        connection.commit()
    content, modified = path.read_bytes(), path.stat().st_mtime_ns

    with pytest.raises(SchemaTooNew) as caught:
        Database.open(url=sqlite_url, migrate=migrate_it, projections=False)

    for detail in (str(path), FUTURE, revisions()[-1]):
        assert detail in str(caught.value)
    assert (caught.value.revision, caught.value.head) == (FUTURE, revisions()[-1])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, modified)
    assert names_in(path.parent) == ["peon.db"]


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_file_of_another_application_is_refused_and_not_touched(sqlite_url: URL, migrate_it: bool) -> None:
    path = file_of(sqlite_url)
    path.parent.mkdir()
    # As most applications leave it: with a rollback journal.
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);"
            "INSERT INTO alembic_version VALUES ('ae1027a6acf');"
        )
    content = path.read_bytes()

    with pytest.raises(SchemaTooNew):
        Database.open(url=sqlite_url, migrate=migrate_it, projections=False)

    assert path.read_bytes() == content
    assert names_in(path.parent) == ["peon.db"]


def test_a_log_further_down_the_search_path_is_another(postgresql_url: URL, url_before_another: URL) -> None:
    with Database.open(url=postgresql_url, projections=False) as behind:
        stored = behind.events.append_all([ProjectRenamed(project_id=uuid4(), name="tides")])
        with pytest.raises(SchemaOutOfDate):
            Database.open(url=url_before_another, migrate=False)
        with Database.open(url=url_before_another, projections=False) as database:
            assert database.events.replay_all() == []
            database.events.append_all([ProjectRenamed(project_id=uuid4(), name="tides")] * 2)
        assert behind.events.replay_all() == stored
    assert schema_of(url_before_another) == schema_of(postgresql_url)
    assert revision_of(url_before_another) == revision_of(postgresql_url) == [revisions()[-1]]


def test_so_is_another_applications_table_of_revisions(postgresql_url: URL, url_before_another: URL) -> None:
    with engine_of(postgresql_url) as engine, engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version AS SELECT 'theirs' AS version_num"))

    Database.open(url=url_before_another).close()

    assert revision_of(url_before_another) == [revisions()[-1]]
    assert revision_of(postgresql_url) == ["theirs"]


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_server_database_of_a_newer_version_is_refused_and_not_touched(postgresql_url: URL, migrate_it: bool) -> None:
    Database.open(url=postgresql_url, projections=False).close()
    set_revision(postgresql_url, FUTURE)
    before = state_of(postgresql_url)

    with pytest.raises(SchemaTooNew) as caught:
        Database.open(url=postgresql_url, migrate=migrate_it, projections=False)

    for detail in (str(postgresql_url.host), FUTURE, revisions()[-1]):
        assert detail in str(caught.value)
    assert state_of(postgresql_url) == before


def set_revision(url: URL, revision: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": revision})


@pytest.mark.parametrize("place", ["before the host", "in the query"])
def test_no_refusal_shows_the_password(postgresql_url: URL, place: str) -> None:
    secret = f"hunter{uuid4().hex}"
    url = (
        postgresql_url.set(password=secret)
        if place == "before the host"
        else postgresql_url.update_query_dict({"password": secret})
    )

    with pytest.raises(SchemaOutOfDate) as out_of_date:
        Database.open(url=url, migrate=False, projections=False)
    Database.open(url=url, projections=False).close()
    set_revision(url, FUTURE)
    with pytest.raises(SchemaTooNew) as too_new:
        Database.open(url=url, projections=False)

    for error in (out_of_date.value, too_new.value):
        assert secret not in str(error)
        assert secret not in repr(error)
        assert secret not in error.database


# Many at once


def test_sixteen_processes_open_the_same_new_database(lasting_url: URL) -> None:
    barrier = processes.context.Barrier(16)

    codes = processes.exit_codes(migration_processes.open_and_append, [(barrier, address(lasting_url))] * 16)

    assert codes == [0] * 16
    with Database.open(url=lasting_url, projections=False) as database:
        assert [stored.sequence for stored in database.events.replay_all()] == list(range(1, 17))
    assert revision_of(lasting_url) == [revisions()[-1]]


def test_processes_open_the_same_new_database_whatever_isolation_the_server_has(postgresql_url: URL) -> None:
    options = rf"{postgresql_url.query['options']} -cdefault_transaction_isolation=repeatable\ read"
    url = address(postgresql_url.update_query_dict({"options": options}))
    barrier = processes.context.Barrier(4)

    assert processes.exit_codes(migration_processes.open_and_append, [(barrier, url)] * 4) == [0] * 4


def test_sixteen_processes_open_the_same_old_database(populated_url: URL) -> None:
    barrier = processes.context.Barrier(16)
    before = rows_of(populated_url)

    codes = processes.exit_codes(migration_processes.open_and_append, [(barrier, address(populated_url))] * 16)

    assert codes == [0] * 16
    after = cut_to(before, rows_of(populated_url))
    assert len(after["events"]) == len(before["events"]) + 16
    assert {**after, "events": after["events"][:-16]} == before
    assert names_in(file_of(populated_url).parent) == ["peon.db", "peon.db.001_initial.backup"]
    copy = populated_url.set(database=f"{populated_url.database}.001_initial.backup")
    assert (rows_of(copy), revision_of(copy)) == (before, ["001_initial"])


def test_threads_open_different_new_databases_at_the_same_time(tmp_path: Path, an_event: OrchestrationEvent) -> None:
    barrier = threading.Barrier(8)

    def open_and_append(number: int) -> list[int]:
        barrier.wait(processes.PATIENCE)
        with Database.open(url=f"sqlite:///{tmp_path}/{number}/peon.db", projections=False) as database:
            return [stored.sequence for stored in database.events.append_all([an_event])]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_and_append, range(8))) == [[1]] * 8


def test_threads_open_the_same_new_database_at_the_same_time(lasting_url: URL, an_event: OrchestrationEvent) -> None:
    barrier = threading.Barrier(8)

    def open_and_append(_: int) -> int:
        barrier.wait(processes.PATIENCE)
        with Database.open(url=lasting_url, projections=False) as database:
            return database.events.append_all([an_event])[0].sequence

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(open_and_append, range(8))) == list(range(1, 9))


def test_a_process_forked_in_the_middle_of_a_migration_opens_a_database(tmp_path: Path) -> None:
    url, url_of_child = (f"sqlite:///{tmp_path}/{name}.db" for name in ("parent", "child"))

    assert processes.run(migration_processes.fork_while_another_thread_migrates, url, url_of_child) == 0


def test_a_reader_of_the_old_database_reads_on_while_it_is_migrated(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT * FROM events").fetchall()

        Database.open(url=populated_url, projections=False).close()

        assert reader.execute("SELECT * FROM events").fetchall() == before


def test_a_writer_of_the_old_database_is_waited_for_and_no_longer_than_configured(populated_url: URL) -> None:
    path = file_of(populated_url)
    before = state_of(populated_url)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="locked"):
            Database.open(AppConfig(database={"busy_timeout": 0.05}), url=populated_url, projections=False)

    assert state_of(populated_url) == before
    assert names_in(path.parent) == ["peon.db"]


# Killed


def kill_after_statement(url: URL, number: int) -> bool:
    """Returns whether there was a statement of that number to kill the migration after."""
    schema, rows = schema_of(url), rows_of(url)
    (code,) = processes.exit_codes(migration_processes.open_and_die_after_statement, [(address(url), number)])
    if code == 0:
        return False
    assert code == -signal.SIGKILL
    assert schema_of(url) == schema, "something was committed before the last statement"
    assert rows_of(url) == rows
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("revision", "at_least"), [(None, 20), ("001_initial", 10)])
def test_a_migration_killed_after_any_statement_leaves_the_old_schema_and_can_be_repeated(
    tmp_path: Path, revision: str | None, at_least: int
) -> None:
    for number in count(1):
        url = URL.create("sqlite", database=str(tmp_path / str(number) / "peon.db"))
        file_of(url).parent.mkdir()
        if revision:
            thaw(revision, file_of(url))
        rows = rows_of(url)
        if not kill_after_statement(url, number):
            assert number > at_least, "hardly a migration"
            break
        with Database.open(url=url, projections=False) as database:
            assert [stored.sequence for stored in database.events.replay_all()] == list(
                range(1, len(rows.get("events", [])) + 1)
            )
        assert cut_to(rows, rows_of(url)) == rows
        assert not [name for name in names_in(file_of(url).parent) if name.endswith(".partial")]


@pytest.mark.slow
def test_a_migration_of_a_server_database_killed_at_times_leaves_the_old_schema(postgresql_url: URL) -> None:
    for number in count(5, step=6):
        if not kill_after_statement(postgresql_url, number):
            assert number > 20, "hardly a migration"
            break

    Database.open(url=postgresql_url, migrate=False, projections=False).close()


def test_a_migration_killed_before_its_commit_leaves_the_old_schema(lasting_url: URL, tmp_path: Path) -> None:
    populate(lasting_url, "001_initial", tmp_path)
    before = state_of(lasting_url)

    assert processes.exit_codes(migration_processes.open_and_die_before_commit, [(address(lasting_url),)]) == [
        -signal.SIGKILL
    ]

    assert state_of(lasting_url) == before
    Database.open(url=lasting_url, projections=False).close()
    assert cut_to(before[1], rows_of(lasting_url)) == before[1]


def test_a_copy_is_never_half_a_copy(populated_url: URL) -> None:
    before = state_of(populated_url)
    folder = file_of(populated_url).parent

    codes = processes.exit_codes(
        migration_processes.open_and_die_before_the_copy_has_its_name, [(address(populated_url),)]
    )

    assert codes == [-signal.SIGKILL]
    assert "peon.db.001_initial.backup" not in names_in(folder)
    assert state_of(populated_url) == before
    Database.open(url=populated_url, projections=False).close()
    assert names_in(folder) == ["peon.db", "peon.db.001_initial.backup"]


# The copy


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_populated_file_is_copied_before_it_is_migrated(populated_url: URL, mode: int) -> None:
    path = file_of(populated_url)
    path.chmod(mode)
    before = state_of(populated_url)

    Database.open(url=populated_url, projections=False).close()

    copy = path.with_name("peon.db.001_initial.backup")
    assert names_in(path.parent) == [path.name, copy.name]
    assert mode_of(copy) == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert state_of(URL.create("sqlite", database=str(copy))) == before


def test_the_copy_holds_what_is_only_in_the_write_ahead_log(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO settings VALUES ('late', 'row')")
        writer.commit()

        Database.open(url=populated_url, projections=False).close()

    copy = populated_url.set(database=f"{populated_url.database}.001_initial.backup")
    assert {"key": "late", "value": "row"} in rows_of(copy)["settings"]


def test_the_copy_takes_the_place_of_the_database(populated_url: URL) -> None:
    path = file_of(populated_url)
    with Database.open(url=populated_url, projections=False) as database:
        log = database.events.replay_all()

    path.with_name("peon.db.001_initial.backup").replace(path)

    with Database.open(url=populated_url, projections=False) as database:
        assert database.events.replay_all() == log


@pytest.mark.parametrize("revision", [None, "001_initial"])
def test_there_is_no_copy_of_a_database_without_rows(sqlite_url: URL, revision: str | None) -> None:
    if revision:
        migrate(sqlite_url, command.upgrade, revision)

    Database.open(url=sqlite_url, projections=False).close()

    assert names_in(file_of(sqlite_url).parent) == ["peon.db"]


# Failures


@pytest.mark.parametrize("operation", ["update", "delete"])  # the first statement of revision 002, and its second
def test_a_failing_migration_leaves_the_file_as_it_was_and_names_the_copy(populated_url: URL, operation: str) -> None:
    path = file_of(populated_url)
    stand_in_the_way(path, operation)
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=populated_url, projections=False)

    copy = path.with_name("peon.db.001_initial.backup")
    assert str(copy) in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert f"events_refuse_{operation} already exists" in str(caught.value.__cause__)
    assert (caught.value.revision, caught.value.head) == ("001_initial", revisions()[-1])
    assert state_of(populated_url) == before
    assert state_of(URL.create("sqlite", database=str(copy))) == before
    assert names_in(path.parent) == [path.name, copy.name]


def test_a_second_failing_attempt_replaces_the_copy(populated_url: URL) -> None:
    path = file_of(populated_url)
    stand_in_the_way(path, "update")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, projections=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO settings VALUES ('between', 'attempts')")
        connection.commit()
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, projections=False)

    copy = path.with_name("peon.db.001_initial.backup")
    assert state_of(URL.create("sqlite", database=str(copy))) == before
    assert names_in(path.parent) == [path.name, copy.name]


def test_a_copy_is_sound_though_the_last_reader_of_the_one_it_replaces_was_killed(populated_url: URL) -> None:
    path = file_of(populated_url)
    copy = path.with_name("peon.db.001_initial.backup")
    stand_in_the_way(path, "update")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, projections=False)
    assert processes.exit_codes(migration_processes.write_and_die, [(str(copy),)]) == [-signal.SIGKILL]
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO settings VALUES (?, ?)", [(f"key {n}", "long" * 100) for n in range(200)])
        connection.commit()
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, projections=False)

    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert state_of(URL.create("sqlite", database=str(copy))) == before


def test_a_migration_succeeds_once_nothing_stands_in_its_way(populated_url: URL) -> None:
    path = file_of(populated_url)
    stand_in_the_way(path, "delete")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, projections=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER events_refuse_delete")

    Database.open(url=populated_url, projections=False).close()

    assert revision_of(populated_url) == [revisions()[-1]]


def stand_in_the_way(path: Path, operation: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TRIGGER events_refuse_{operation} AFTER INSERT ON settings BEGIN SELECT 1; END")


def test_a_failing_migration_leaves_a_server_database_as_it_was(postgresql_url: URL, tmp_path: Path) -> None:
    populate(postgresql_url, "001_initial", tmp_path)
    with engine_of(postgresql_url) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE FUNCTION events_refuse_change() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    before = state_of(postgresql_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=postgresql_url, projections=False)

    assert isinstance(caught.value.__cause__, psycopg.errors.DuplicateFunction)
    assert state_of(postgresql_url) == before


def test_the_tables_of_another_application_are_not_overwritten(sqlite_url: URL) -> None:
    path = file_of(sqlite_url)
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE settings (volume INTEGER); INSERT INTO settings VALUES (11);")
    before = schema_of(sqlite_url), rows_of(sqlite_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=sqlite_url, projections=False)

    copy = path.with_name("peon.db.base.backup")
    assert str(copy) in str(caught.value)
    assert (schema_of(sqlite_url), rows_of(sqlite_url)) == before
    assert rows_of(sqlite_url.set(database=str(copy))) == before[1]


# Logging handlers


@pytest.mark.parametrize("logger", ["", "alembic"])
def test_a_logging_handler_that_opens_the_database_in_its_migration_gets_an_error(
    lasting_url: URL, tmp_path: Path, logger: str
) -> None:
    rows = populate(lasting_url, "001_initial", tmp_path)

    outcomes = processes.run(
        migration_processes.open_while_a_handler_opens, address(lasting_url), logger, address(lasting_url)
    )

    assert outcomes
    assert all("in the middle of a migration" in outcome for outcome in outcomes)
    assert revision_of(lasting_url) == [revisions()[-1]]
    assert cut_to(rows, rows_of(lasting_url)) == rows


def test_a_logging_handler_may_open_another_database_that_is_up_to_date(populated_url: URL, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/log.db"
    Database.open(url=log, projections=False).close()

    outcomes = processes.run(migration_processes.open_while_a_handler_opens, address(populated_url), "alembic", log)

    assert outcomes == ["stored"] * len(outcomes) != []
    with Database.open(url=log, projections=False) as database:
        assert len(database.events.replay_all()) == len(outcomes)


def test_a_logging_handler_with_a_thread_of_its_own_waits_for_the_migration(lasting_url: URL) -> None:
    assert processes.run(migration_processes.open_while_a_thread_of_a_handler_opens, address(lasting_url)) == ["stored"]
    assert revision_of(lasting_url) == [revisions()[-1]]


# Opening


def test_an_up_to_date_database_opens_without_alembic(lasting_url: URL) -> None:
    Database.open(url=lasting_url, projections=False).close()
    script = (
        "import sys; from peon.persistence import Database; "
        f"[Database.open(url={address(lasting_url)!r}, migrate=migrate).close() for migrate in (True, False)]; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('alembic', 'mako')])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_an_up_to_date_database_is_not_written_when_it_is_opened(sqlite_url: URL) -> None:
    path = thaw(revisions()[-1], file_of(sqlite_url))
    content, modified = path.read_bytes(), path.stat().st_mtime_ns

    Database.open(url=sqlite_url, projections=False).close()

    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, modified)


@pytest.fixture
def no_umask() -> Iterator[None]:
    usual = os.umask(0)
    yield
    os.umask(usual)


@pytest.mark.usefixtures("no_umask")
def test_a_new_database_is_private_to_its_owner(tmp_path: Path, an_event: OrchestrationEvent) -> None:
    folder = tmp_path / "deep" / "data" / "peon"

    with Database.open(url=f"sqlite:///{folder}/peon.db", projections=False) as database:
        database.events.append_all([an_event])
        modes = {path.name: mode_of(path) for path in folder.iterdir()}

    assert modes == {"peon.db": 0o600, "peon.db-wal": 0o600, "peon.db-shm": 0o600}
    assert mode_of(folder) == 0o700


def test_the_mode_of_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o751)

    Database.open(url=f"sqlite:///{folder}/peon.db", projections=False).close()

    assert mode_of(folder) == 0o751


def test_the_mode_of_an_existing_file_is_left_alone(populated_url: URL) -> None:
    file_of(populated_url).chmod(0o640)

    Database.open(url=populated_url, projections=False).close()

    assert mode_of(file_of(populated_url)) == 0o640


def test_a_missing_file_is_refused_without_being_created(sqlite_url: URL) -> None:
    with pytest.raises(SchemaOutOfDate, match="is at revision base"):
        Database.open(url=sqlite_url, migrate=False, projections=False)

    assert not Path(str(sqlite_url.database)).parent.exists()


def test_the_error_of_a_failed_migration_says_what_failed(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE events (x)")
    with pytest.raises(MigrationFailed, match="table events already exists"):
        upgrade(engine)
    engine.dispose()
