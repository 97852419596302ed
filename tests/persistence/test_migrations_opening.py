"""An up-to-date database opens without Alembic; a new database is private to its owner."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.migrated_databases import address, file_of, mode_of, thaw
from sqlalchemy import URL

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database, MigrationFailed, SchemaOutOfDate, upgrade
from peon.persistence.backends.engine import create_engine
from peon.persistence.migrations import revisions


def test_an_up_to_date_database_opens_without_alembic(lasting_url: URL) -> None:
    Database.open(url=lasting_url, maintain_projections=False).close()
    script = (
        "import sys; from peon.persistence import Database; "
        f"[Database.open(url={address(lasting_url)!r}, migrate=migrate).close() for migrate in (True, False)]; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('alembic', 'mako')])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_opening_an_up_to_date_database_writes_nothing(sqlite_url: URL) -> None:
    path = thaw(revisions()[-1], file_of(sqlite_url))
    content, modified = path.read_bytes(), path.stat().st_mtime_ns

    Database.open(url=sqlite_url, maintain_projections=False).close()

    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, modified)


@pytest.fixture
def no_umask() -> Iterator[None]:
    usual = os.umask(0)
    yield
    os.umask(usual)


@pytest.mark.usefixtures("no_umask")
def test_a_new_database_is_private_to_its_owner(tmp_path: Path, an_event: OrchestrationEvent) -> None:
    folder = tmp_path / "deep" / "data" / "peon"

    with Database.open(url=f"sqlite:///{folder}/peon.db", maintain_projections=False) as database:
        database.events.append_all([an_event])
        modes = {path.name: mode_of(path) for path in folder.iterdir()}

    assert modes == {"peon.db": 0o600, "peon.db-wal": 0o600, "peon.db-shm": 0o600}
    assert mode_of(folder) == 0o700


def test_the_mode_of_an_existing_folder_does_not_change(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o751)

    Database.open(url=f"sqlite:///{folder}/peon.db", maintain_projections=False).close()

    assert mode_of(folder) == 0o751


def test_the_mode_of_an_existing_file_does_not_change(populated_url: URL) -> None:
    file_of(populated_url).chmod(0o640)

    Database.open(url=populated_url, maintain_projections=False).close()

    assert mode_of(file_of(populated_url)) == 0o640


def test_a_missing_file_is_refused_without_being_created(sqlite_url: URL) -> None:
    with pytest.raises(SchemaOutOfDate, match="is at revision base"):
        Database.open(url=sqlite_url, migrate=False, maintain_projections=False)

    assert not Path(str(sqlite_url.database)).parent.exists()


def test_the_error_of_a_failed_migration_says_what_failed(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE events (x)")
    with pytest.raises(MigrationFailed, match="table events already exists"):
        upgrade(engine)
    engine.dispose()
