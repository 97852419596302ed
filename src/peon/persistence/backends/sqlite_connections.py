"""Connections to SQLite: how each is set up, and how its transactions begin."""

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Pool, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from peon.persistence.backends.address import is_file, is_memory
from peon.persistence.backends.interface import READ_ONLY, Synchronous
from peon.persistence.backends.sqlite_write_lock import WriteLock

WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
"""SQLite cuts the -wal file back to this size after a checkpoint, once a long transaction has made it grow."""

WRITE_LOCK_TIMEOUT = "peon_write_lock_timeout"
"""Execution option of a connection: seconds that its transactions wait for the write lock."""

_ROLLBACK_JOURNAL = "peon_rollback_journal"
_WRITE_LOCK = "peon_write_lock"


def connection_options(url: URL, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
    # The driver must not begin transactions by itself; the `begin` listener below does.
    connect_args: dict[str, Any] = {"isolation_level": None}
    if sys.version_info >= (3, 12):
        connect_args["autocommit"] = sqlite3.LEGACY_TRANSACTION_CONTROL
    if not is_memory(url):
        return {"connect_args": connect_args}
    # A database in memory ends with its connection, so all threads share a single one.
    connect_args["check_same_thread"] = False
    only_one = {"poolclass": pool, "pool_size": 1, "max_overflow": 0, "pool_timeout": busy_timeout}
    return {"connect_args": connect_args, **only_one}


def listen(engine: Engine, synchronous: Synchronous, busy_timeout: float, pause: Callable[[float], object]) -> None:
    """Adds the listeners; the arguments are those of `Backend.set_up`."""
    in_memory = is_memory(engine.url)
    milliseconds = round(busy_timeout * 1000)
    path = Path(str(engine.url.database)) if is_file(engine.url) else None

    if path is not None:

        @event.listens_for(engine, "do_connect")
        def create_file(*_: object) -> None:
            create_private_file(path)

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        # First, because the statements below may have to wait for another connection.
        connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        record.info[_WRITE_LOCK] = WriteLock(path and path.parent, milliseconds, pause)
        if not in_memory:
            record.info[_ROLLBACK_JOURNAL] = pragma(connection, "journal_mode") != "wal"
            # Without a limit the -wal file keeps the size that the largest transaction gave it.
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
            # A rebuild fills temporary tables in many transactions; a journal file for each takes half of its time.
            connection.execute("PRAGMA temp.journal_mode = MEMORY")
        # FULL: a commit has reached the disk before it is acknowledged. macOS needs fullfsync as well.
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA fullfsync = {synchronous == 'FULL'}")
        # Off by default in SQLite; the projection tables rely on it.
        connection.execute("PRAGMA foreign_keys = ON")
        # With it, the triggers that refuse a delete also fire for the delete hidden in INSERT OR REPLACE.
        connection.execute("PRAGMA recursive_triggers = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        info = connection.info
        write_lock = info[_WRITE_LOCK]
        # On the driver's connection: through SQLAlchemy, BEGIN takes a tenth of the time of an append of one event.
        driver = driver_connection(connection)
        try:
            if options.get(READ_ONLY):
                write_lock.let_sqlite_wait(driver)
                driver.execute("BEGIN")
                return
            timeout = options.get(WRITE_LOCK_TIMEOUT, busy_timeout)
            # Not when connecting, since it changes the file, which may turn out to be another application's.
            if info.get(_ROLLBACK_JOURNAL):
                info[_ROLLBACK_JOURNAL] = not _use_write_ahead_log(driver, time.monotonic() + timeout, pause)
            write_lock.begin_immediate(driver, timeout)
            if info.get(_ROLLBACK_JOURNAL):
                write_lock.let_sqlite_wait(driver)  # the commit has to wait for readers
        except sqlite3.OperationalError as error:
            raise OperationalError("BEGIN", None, error) from error

    @event.listens_for(engine, "reset")
    def let_sqlite_wait(connection: sqlite3.Connection, record: ConnectionPoolEntry | None, _: object) -> None:
        if record is not None:  # a detached connection has none, and is closed
            record.info[_WRITE_LOCK].let_sqlite_wait(connection)


def driver_connection(connection: Connection) -> sqlite3.Connection:
    """Returns the driver's own connection, for its own API and where SQLAlchemy costs too much.

    In an event loop it is SQLAlchemy's adapter of an asynchronous connection, which has `execute` and little else.
    """
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    """Returns the value of a pragma.

    SQLAlchemy 2.0's adapter for an event loop returns rows from its cursors only, not from what `execute` returns.
    """
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA {name}")
        return cursor.fetchone()[0]


def create_private_file(path: Path) -> None:
    """Creates an empty file that only its owner can read. SQLite would use the permissions of the umask.

    The -wal and -shm files get the permissions of the file.
    """
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another process was faster
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _use_write_ahead_log(connection: sqlite3.Connection, deadline: float, pause: Callable[[float], object]) -> bool:
    """Switches the file to WAL mode, in which readers and the writer do not wait for one another.

    The mode is a lasting property of the file. SQLite does not wait for the lock that the change needs.

    Returns:
        Whether WAL mode is used: not every virtual file system of SQLite supports it.
    """
    while pragma(connection, "journal_mode") != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            pause(0.005)
    return bool(pragma(connection, "journal_mode") == "wal")
