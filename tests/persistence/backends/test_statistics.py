"""What a database is made of, and who uses it."""

import subprocess
import sys

import pytest
from helpers.migrated_databases import file_of
from sqlalchemy import URL

from peon import Database
from peon.persistence.backends import backend_of, sqlite_statistics
from peon.persistence.schema import metadata


def test_the_parts_make_up_the_database(database: Database) -> None:
    backend = backend_of(database.engine)
    with database.read_transaction() as connection:
        storage, parts = backend.storage(connection), backend.sizes_of_parts(connection)
        version = backend.version(connection)
    if parts is None:
        pytest.skip("this SQLite was compiled without dbstat")
    assert version[0].isdigit()
    assert {table.name for table in metadata.sorted_tables} <= {part.name for part in parts if not part.is_index}
    assert "idx_events_sequence" in {part.name for part in parts if part.is_index and part.table == "events"}
    if backend.measures_parts_by_reading:
        of_parts = sum(part.bytes for part in parts)
        # A file whose pages can move has a page of pointers, which is of no part.
        assert storage.database - (storage.free or 0) - of_parts in (0, 4096)


def test_the_write_ahead_log_is_measured(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.settings.set("a", "b")
        with database.read_transaction() as connection:
            size = backend_of(connection).storage(connection).write_ahead_log
        assert size == file_of(migrated_sqlite_url).with_name("peon.db-wal").stat().st_size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows which processes have a file open")
def test_a_process_that_has_the_file_open_is_named(migrated_sqlite_url: URL) -> None:
    path = file_of(migrated_sqlite_url)
    with path.open("rb") as file, subprocess.Popen(["sleep", "30"], stdin=file) as process:
        found = sqlite_statistics.processes_with(path)
        process.kill()
    assert found == [f"process {process.pid} (sleep)"]


def test_other_sessions_of_a_server_are_counted(migrated_postgresql_url: URL) -> None:
    with Database.open(url=migrated_postgresql_url) as database, Database.open(url=migrated_postgresql_url) as other:
        other.settings.all()
        with database.read_transaction() as connection:
            assert backend_of(connection).users(connection)
