"""A file with rows is copied before it is migrated."""

import signal
import sqlite3
from contextlib import closing

import pytest
from alembic import command
from helpers import migration_processes, processes
from helpers.migrated_databases import file_of, make_migration_fail, migrate, mode_of, names_in, rows_of, state_of
from sqlalchemy import URL

from peon.persistence import Database, MigrationFailed


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_populated_file_is_copied_before_it_is_migrated(populated_url: URL, mode: int) -> None:
    path = file_of(populated_url)
    path.chmod(mode)
    before = state_of(populated_url)

    Database.open(url=populated_url, maintain_projections=False).close()

    copy = path.with_name("peon.db.001_initial.backup")
    assert names_in(path.parent) == [path.name, copy.name]
    assert mode_of(copy) == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert state_of(URL.create("sqlite", database=str(copy))) == before


def test_the_copy_contains_rows_that_are_only_in_the_write_ahead_log(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO settings VALUES ('late', 'row')")
        writer.commit()

        Database.open(url=populated_url, maintain_projections=False).close()

    copy = populated_url.set(database=f"{populated_url.database}.001_initial.backup")
    assert {"key": "late", "value": "row"} in rows_of(copy)["settings"]


def test_the_copy_can_replace_the_database(populated_url: URL) -> None:
    path = file_of(populated_url)
    with Database.open(url=populated_url, maintain_projections=False) as database:
        log = database.events.replay_all()

    path.with_name("peon.db.001_initial.backup").replace(path)

    with Database.open(url=populated_url, maintain_projections=False) as database:
        assert database.events.replay_all() == log


@pytest.mark.parametrize("revision", [None, "001_initial"])
def test_there_is_no_copy_of_a_database_without_rows(sqlite_url: URL, revision: str | None) -> None:
    if revision:
        migrate(sqlite_url, command.upgrade, revision)

    Database.open(url=sqlite_url, maintain_projections=False).close()

    assert names_in(file_of(sqlite_url).parent) == ["peon.db"]


def test_a_second_failing_attempt_replaces_the_copy(populated_url: URL) -> None:
    path = file_of(populated_url)
    make_migration_fail(path, "update")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, maintain_projections=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO settings VALUES ('between', 'attempts')")
        connection.commit()
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, maintain_projections=False)

    copy = path.with_name("peon.db.001_initial.backup")
    assert state_of(URL.create("sqlite", database=str(copy))) == before
    assert names_in(path.parent) == [path.name, copy.name]


def test_a_copy_is_sound_after_the_last_reader_of_an_earlier_copy_was_killed(populated_url: URL) -> None:
    path = file_of(populated_url)
    copy = path.with_name("peon.db.001_initial.backup")
    make_migration_fail(path, "update")
    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, maintain_projections=False)
    assert processes.exit_codes(migration_processes.write_and_die, [(str(copy),)]) == [-signal.SIGKILL]
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO settings VALUES (?, ?)", [(f"key {n}", "long" * 100) for n in range(200)])
        connection.commit()
    before = state_of(populated_url)

    with pytest.raises(MigrationFailed):
        Database.open(url=populated_url, maintain_projections=False)

    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert state_of(URL.create("sqlite", database=str(copy))) == before
