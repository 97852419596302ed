"""An error tells a file system that cannot lock files from a lock that another connection holds."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from helpers.unavailable_databases import IMPATIENT, fill, renamed, sqlite, unavailable

from peon.persistence import Database
from peon.persistence.backends.driver_errors import explain
from peon.persistence.backends.sqlite_file_locks import file_system_of

SOURCE = Path(__file__).parents[2] / "data" / "no_file_locks.c"

OPEN = """
import asyncio, sys, time
from pathlib import Path
from uuid import UUID
from peon import AsyncDatabase, Database
from peon.orchestration import ProjectRenamed
from peon.persistence import StoreUnavailable
url, switch = sys.argv[1:]
event = ProjectRenamed(project_id=UUID(int=1), name="name")
def no_locks():
    Path(switch).touch()
    return time.monotonic()
"""

AT_START_UP = """
start = no_locks()
try:
    Database.open(url=url)
except StoreUnavailable as error:
    print(error)
"""

WHILE_OPEN = """
database = Database.open(url=url, maintain_projections=False)
database.events.append_all([event])
start = no_locks()
try:
    database.events.append_all([event])
except StoreUnavailable as error:
    print(error)
"""

IN_AN_EVENT_LOOP = """
async def story():
    database = await AsyncDatabase.open(url=url, maintain_projections=False)
    await database.events.append_all([event])
    start = no_locks()
    try:
        await database.events.append_all([event])
    except StoreUnavailable as error:
        print(error)
    Path(switch).unlink()
    await database.close()
    return start
start = asyncio.run(story())
"""

SETTING = """
database = Database.open(url=url, maintain_projections=False)
start = no_locks()
try:
    database.settings.set("key", "value")
except StoreUnavailable as error:
    print(error)
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    library = tmp_path_factory.mktemp("shim") / "no_file_locks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def test_a_start_up_without_locks_fails_soon(tmp_path: Path, shim: Path) -> None:
    assert fail_without_locks(tmp_path, shim, AT_START_UP) < 8  # the timeout is 10


@pytest.mark.slow  # SQLite itself tries for ten seconds to begin to read
@pytest.mark.parametrize("script", [WHILE_OPEN, IN_AN_EVENT_LOOP, SETTING])
def test_the_file_system_that_lost_its_locks_is_named(tmp_path: Path, shim: Path, script: str) -> None:
    fail_without_locks(tmp_path, shim, script)


def fail_without_locks(tmp_path: Path, shim: Path, script: str) -> float:
    """Checks the error of the script, and returns the seconds after which it was raised."""
    path = tmp_path / "peon.db"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            OPEN + script + "print(time.monotonic() - start)",
            str(sqlite(path)),
            tmp_path / "switch",
        ],
        env=os.environ | {"LD_PRELOAD": str(shim), "NO_LOCKS": str(tmp_path / "switch")},
        capture_output=True,
        text=True,
        check=True,
    )

    message, seconds = done.stdout.splitlines()
    assert message.replace("sqlite+aiosqlite:", "sqlite:") == (
        f"{sqlite(path)}: files cannot be locked on {file_system_of(path)} (No locks available): "
        "move the database to a local disk, or use PostgreSQL"
    )
    return float(seconds)


def test_a_lock_of_another_connection_is_reported_as_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    fill(sqlite(path))
    with (
        Database.open(IMPATIENT, url=sqlite(path), maintain_projections=False) as database,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with unavailable(sqlite(path), "it is locked by another connection"):
            database.events.append_all([renamed()])


@pytest.mark.parametrize(
    "code",
    [sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_SHMLOCK],
)
def test_errors_of_locking_name_the_file_system(tmp_path: Path, code: int) -> None:
    error = sqlite3.OperationalError("locking protocol")
    error.sqlite_errorcode = code
    name = re.escape(str(file_system_of(tmp_path)))
    assert re.match(f"files cannot be locked on {name} .locking protocol.: move", explain(error, tmp_path / "peon.db"))
    assert "perhaps a network file system" in explain(error)


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="the system does not list its mounts")
def test_the_file_system_is_that_of_the_innermost_mount() -> None:
    assert file_system_of(Path("/proc/self/status")) == "proc at /proc"
    assert str(file_system_of(Path("/"))).endswith(" at /")
