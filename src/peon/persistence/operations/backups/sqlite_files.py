"""Backups of SQLite: files that are databases themselves."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends.sqlite_connections import driver_connection
from peon.persistence.backends.sqlite_driver import first_row
from peon.persistence.backends.version_table import VERSION_TABLE
from peon.persistence.errors import DamagedFile, PersistenceError, StoreUnavailable
from peon.persistence.operations.backups.contents import Contents, contents_of

INSTRUCTIONS_A_REPORT = 100_000
"""Of SQLite's virtual machine, between two reports of the progress: about 30 ms."""

_PROBE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 512, 0x40000000)
"""
"""Fails if another process holds one of SQLite's locks, which are of these bytes: https://sqlite.org/src/file/src/os.h"""


def write_copy(connection: Connection, file: Path, progress: Callable[[int, int], None]) -> None:
    """Copies the database of a connection into an empty file, in one step, while others may write.

    Args:
        progress: Called with the number of bytes of the copy, and that of the database.
    """
    driver = driver_connection(connection)
    total = first_row(driver, "PRAGMA page_count")[0] * first_row(driver, "PRAGMA page_size")[0]
    raised: list[BaseException] = []

    def report() -> int:
        try:
            progress(min(file.stat().st_size, total), total)
        except BaseException as error:  # the driver would drop it
            raised.append(error)
            return 1
        return 0

    (query_only,) = first_row(driver, "PRAGMA query_only")
    driver.execute("PRAGMA query_only = OFF")  # an engine that only reads may still write a copy
    driver.set_progress_handler(report, INSTRUCTIONS_A_REPORT)
    try:
        driver.execute("VACUUM INTO ?", (str(file),))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            # Without an error of `report`, a signal handler has raised before it began.
            raise (raised[0] if raised else KeyboardInterrupt()) from None
        raise
    finally:
        driver.set_progress_handler(None, 0)
        driver.execute(f"PRAGMA query_only = {query_only}")
    progress(total, total)


def checked_contents(file: Path, name: str, version_table: str) -> Contents:
    """Reads every page of a database that no one else uses, and returns what it holds.

    Raises:
        DamagedFile: It is damaged.
        PersistenceError: It is not a database of peon.
    """
    engine = create_engine(URL.create("sqlite", database=str(file)), execution_options={VERSION_TABLE: version_table})
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
            if found != "ok":
                _refuse_damaged(name, None)
            return contents_of(connection)
    except DBAPIError as error:
        _refuse_damaged(name, error.orig)
    except DamagedFile:
        raise
    except PersistenceError as error:
        raise PersistenceError(f"{name}: {error}") from error
    finally:
        engine.dispose()


def require_unused(path: Path) -> None:
    """Raises `StoreUnavailable` if a process, also this one, has a database open in WAL mode.

    Another process looks: it sees the locks of this one, which this one would lose by closing the file. The file may be
    damaged, and SQLite could change it, so SQLite does not open it.
    """
    if sys.platform == "win32":  # it does not rename a file that is open
        return
    probe = [sys.executable, "-I", "-c", _PROBE, str(path)]
    done = subprocess.run(probe, capture_output=True, check=False)  # noqa: S603
    if b"BlockingIOError" in done.stderr:
        raise StoreUnavailable(f"{path} is in use by another connection: stop the applications, and restore again")


@contextmanager
def moved_away(path: Path, kept: Path) -> Iterator[None]:
    """Renames a database, and the files of SQLite beside it. If the block ends with an error, they are moved back."""
    moved = []
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            old, new = path.with_name(path.name + suffix), kept.with_name(kept.name + suffix)
            if old.exists():
                old.rename(new)
                moved.append((old, new))
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        for old, new in moved:
            new.rename(old)
        raise


def require_nothing_beside(file: Path) -> None:
    """Raises `PersistenceError` if a backup has a -wal or a journal file, without which it is not whole."""
    for suffix in ("-wal", "-journal"):
        beside = file.with_name(file.name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise PersistenceError(
                f"{file} is not a backup but a database in use, or one that crashed, because {beside.name} lies beside "
                "it: make a backup of it, and restore that"
            )


def _refuse_damaged(name: str, error: BaseException | None) -> NoReturn:
    raise DamagedFile(f"{name} is damaged, or not an SQLite database: use another backup") from error
