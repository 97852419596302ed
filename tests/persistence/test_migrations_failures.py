"""A migration that is killed or fails leaves the database as it was."""

import signal
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import psycopg
import pytest
from helpers import migration_processes, processes
from helpers.migrated_databases import (
    address,
    cut_to,
    engine_of,
    file_of,
    make_migration_fail,
    names_in,
    populate,
    revision_of,
    rows_of,
    schema_of,
    state_of,
    thaw,
)
from sqlalchemy import URL

from peon.persistence import Database, MigrationFailed
from peon.persistence.migrations import revisions


def kill_after_statement(url: URL, number: int) -> bool:
    """Kills the migration after a statement; returns `False` if there are fewer statements."""
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
        with Database.open(url=url, maintain_projections=False) as database:
            assert [stored.sequence for stored in database.events.replay_all()] == list(
                range(1, len(rows.get("events", [])) + 1)
            )
        assert cut_to(rows, rows_of(url)) == rows
        assert not [name for name in names_in(file_of(url).parent) if name.endswith(".partial")]


@pytest.mark.slow
def test_a_migration_of_a_server_database_killed_at_any_time_leaves_the_old_schema(postgresql_url: URL) -> None:
    for number in count(5, step=6):
        if not kill_after_statement(postgresql_url, number):
            assert number > 20, "hardly a migration"
            break

    Database.open(url=postgresql_url, migrate=False, maintain_projections=False).close()


def test_a_migration_killed_before_its_commit_leaves_the_old_schema(lasting_url: URL, tmp_path: Path) -> None:
    populate(lasting_url, "001_initial", tmp_path)
    before = state_of(lasting_url)

    assert processes.exit_codes(migration_processes.open_and_die_before_commit, [(address(lasting_url),)]) == [
        -signal.SIGKILL
    ]

    assert state_of(lasting_url) == before
    Database.open(url=lasting_url, maintain_projections=False).close()
    assert cut_to(before[1], rows_of(lasting_url)) == before[1]


def test_a_killed_copy_does_not_have_the_name_of_a_copy(populated_url: URL) -> None:
    before = state_of(populated_url)
    folder = file_of(populated_url).parent

    codes = processes.exit_codes(
        migration_processes.open_and_die_before_the_copy_has_its_name, [(address(populated_url),)]
    )

    assert codes == [-signal.SIGKILL]
    assert "peon.db.001_initial.backup" not in names_in(folder)
    assert state_of(populated_url) == before
    Database.open(url=populated_url, maintain_projections=False).close()
    assert names_in(folder) == ["peon.db", "peon.db.001_initial.backup"]


@pytest.mark.parametrize("operation", ["update", "delete"])  # the first statement of revision 002, and its second
def test_a_failing_migration_leaves_the_file_unchanged_and_names_the_copy(populated_url: URL, operation: str) -> None:
    path = file_of(populated_url)
    make_migration_fail(path, operation)
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=populated_url, maintain_projections=False)

    copy = path.with_name("peon.db.001_initial.backup")
    assert str(copy) in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert f"events_refuse_{operation} already exists" in str(caught.value.__cause__)
    assert (caught.value.revision, caught.value.head) == ("001_initial", revisions()[-1])
    assert state_of(populated_url) == before
    assert state_of(URL.create("sqlite", database=str(copy))) == before
    assert names_in(path.parent) == [path.name, copy.name]


def test_a_migration_succeeds_after_the_cause_of_its_failure_is_removed(populated_url: URL) -> None:
    path = file_of(populated_url)
    make_migration_fail(path, "delete")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, maintain_projections=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER events_refuse_delete")

    Database.open(url=populated_url, maintain_projections=False).close()

    assert revision_of(populated_url) == [revisions()[-1]]


def test_a_failing_migration_leaves_a_server_database_unchanged(postgresql_url: URL, tmp_path: Path) -> None:
    populate(postgresql_url, "001_initial", tmp_path)
    with engine_of(postgresql_url) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE FUNCTION events_refuse_change() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    before = state_of(postgresql_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=postgresql_url, maintain_projections=False)

    assert isinstance(caught.value.__cause__, psycopg.errors.DuplicateFunction)
    assert state_of(postgresql_url) == before


def test_the_tables_of_another_application_are_not_overwritten(sqlite_url: URL) -> None:
    path = file_of(sqlite_url)
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE settings (volume INTEGER); INSERT INTO settings VALUES (11);")
    before = schema_of(sqlite_url), rows_of(sqlite_url)

    with pytest.raises(MigrationFailed) as caught:
        Database.open(url=sqlite_url, maintain_projections=False)

    copy = path.with_name("peon.db.base.backup")
    assert str(copy) in str(caught.value)
    assert (schema_of(sqlite_url), rows_of(sqlite_url)) == before
    assert rows_of(sqlite_url.set(database=str(copy))) == before[1]
