"""Connections to SQLite: how each is set up, and how its transactions begin."""

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, Pool, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from peon.persistence.backends.address import is_file, is_memory
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.interface import READ_ONLY, Access, Synchronous
from peon.persistence.backends.sqlite_driver import EventLoopConnection, GatedConnection, first_row
from peon.persistence.backends.sqlite_file import DatabaseFile, OpenFile
from peon.persistence.backends.sqlite_file_locks import PATIENCE_SECONDS, is_busy, reason_for_no_locks
from peon.persistence.backends.sqlite_reading import mode_for_reading
from peon.persistence.backends.sqlite_write_lock import WriteLock
from peon.persistence.errors import StoreUnavailable

WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
"""SQLite cuts the -wal file back to this size after a checkpoint, once a long transaction has made it grow."""

WRITE_LOCK_TIMEOUT = "peon_write_lock_timeout"
"""Execution option of a connection: seconds that its transactions wait for the write lock."""

_FILE = "peon_file"
_ROLLBACK_JOURNAL = "peon_rollback_journal"
_WRITE_LOCK = "peon_write_lock"


def connection_options(url: URL, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
    # The driver must not begin transactions by itself; the `begin` listener below does.
    factory = EventLoopConnection if url.get_driver_name() == "aiosqlite" else GatedConnection
    connect_args: dict[str, Any] = {"isolation_level": None, "factory": factory}
    if sys.version_info >= (3, 12):
        connect_args["autocommit"] = sqlite3.LEGACY_TRANSACTION_CONTROL
    if not is_memory(url):
        return {"connect_args": connect_args}
    # A database in memory ends with its connection, so all threads share a single one.
    connect_args["check_same_thread"] = False
    only_one = {"poolclass": pool, "pool_size": 1, "max_overflow": 0, "pool_timeout": busy_timeout}
    return {"connect_args": connect_args, **only_one}


def listen(
    engine: Engine, synchronous: Synchronous, busy_timeout: float, pause: Callable[[float], object], access: Access
) -> None:
    """Adds the listeners; the arguments are those of `Backend.set_up`."""
    in_memory = is_memory(engine.url)
    milliseconds = round(busy_timeout * 1000)
    path = Path(str(engine.url.database)) if is_file(engine.url) else None
    if in_memory:
        _keep_when_interrupted(engine)
    else:
        _listen_for_changed_files(engine, path, access)

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        if path is not None:
            _require_locks(connection, path, milliseconds)
        # First, because the statements below may have to wait for another connection.
        connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        record.info[_WRITE_LOCK] = WriteLock(path and path.parent, milliseconds, pause)
        if not in_memory:
            record.info[_ROLLBACK_JOURNAL] = first_row(connection, "PRAGMA journal_mode") != ("wal",)
            opened: OpenFile | None = record.info[_FILE]
            if opened is not None and not record.info[_ROLLBACK_JOURNAL]:
                opened.remember_write_ahead_log()
            # Without a limit the -wal file keeps the size that the largest transaction gave it.
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
            # A rebuild fills temporary tables in many transactions; a journal file for each takes half of its time.
            connection.execute("PRAGMA temp.journal_mode = MEMORY")
            # Debian's SQLite has it on, and then copies each page of a dropped table into that journal.
            connection.execute("PRAGMA temp.secure_delete = OFF")
        # FULL: a commit has reached the disk before it is acknowledged. macOS needs fullfsync as well.
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA fullfsync = {synchronous == 'FULL'}")
        # Off by default in SQLite; the projection tables rely on it.
        connection.execute("PRAGMA foreign_keys = ON")
        # With it, the triggers that refuse a delete also fire for the delete hidden in INSERT OR REPLACE.
        connection.execute("PRAGMA recursive_triggers = ON")
        if access == "read":
            connection.execute("PRAGMA query_only = ON")  # also refuses temporary tables

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
            if options.get("isolation_level") == "AUTOCOMMIT":
                write_lock.let_sqlite_wait(driver)
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

    @event.listens_for(engine, "checkin")
    def roll_back(connection: Any, _: object) -> None:
        # SQLAlchemy takes a transaction for ended whose end was interrupted, as by a signal handler that raises.
        if connection is not None and engine.dialect.get_driver_connection(connection).in_transaction:
            connection.rollback()

    @event.listens_for(engine, "checkin")
    def switch_off_transactions_of_driver(connection: sqlite3.Connection | None, _: object) -> None:
        # SQLAlchemy switches them on when it sets or resets an isolation level, which it does before this event.
        if connection is not None and connection.isolation_level is not None:
            connection.isolation_level = None


def _keep_when_interrupted(engine: Engine) -> None:
    """Keeps the connection of a database in memory when a statement is interrupted: without it, the data is gone.

    SQLAlchemy closes a connection after an interrupt, as by a signal handler that raises, because it does not know
    whether the driver can still use it. SQLite's can: the statement takes place or does not.
    """

    @event.listens_for(engine, "handle_error")
    def keep(context: ExceptionContext) -> None:
        if not isinstance(context.original_exception, Exception):
            context.is_disconnect = False


def _require_locks(connection: sqlite3.Connection, path: Path, milliseconds: int) -> None:
    """Fails early where the file system cannot lock files: SQLite would try again until the timeout."""
    connection.execute(f"PRAGMA busy_timeout = {min(milliseconds, round(PATIENCE_SECONDS * 1000))}")
    try:
        first_row(connection, "PRAGMA journal_mode")
    except sqlite3.OperationalError as error:
        if not is_busy(error) or reason_for_no_locks(path.parent):
            raise


def _listen_for_changed_files(engine: Engine, path: Path | None, access: Access) -> None:
    """Refuses connections and commits to a file that is no longer at its path.

    A commit is checked right before it. Later would be too late to say that nothing was stored; earlier would leave
    the time that the transaction takes, and its wait for the lock.
    """
    file = DatabaseFile(database_name(engine), path)

    @event.listens_for(engine, "do_connect")
    def prepare_file(
        _dialect: object, record: ConnectionPoolEntry, arguments: list[Any], options: dict[str, Any]
    ) -> None:
        if path is not None:
            if access == "write" and file.may_be_created:
                create_private_file(path)
            # SQLite must not create the file again if it disappears now.
            mode = "mode=rw" if access == "write" else mode_for_reading(path)
            arguments[0], options["uri"] = f"{path.as_uri()}?{mode}", True
        record.info[_FILE] = file.before_connecting()

    @event.listens_for(engine, "connect")
    def remember_file(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        try:
            record.info[_FILE] = file.connected(sqlite_path(connection), record.info[_FILE])
        except StoreUnavailable:
            connection.close()
            raise

    @event.listens_for(engine, "checkout")
    def require_file(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        opened: OpenFile | None = record.info[_FILE]
        if opened is not None:
            opened.require_in_place()

    @event.listens_for(engine, "commit")
    def require_files(connection: Connection) -> None:
        info = connection.info
        opened: OpenFile | None = info[_FILE]
        if opened is not None and not connection.get_execution_options().get(READ_ONLY):
            opened.require_in_place()
            if not info[_ROLLBACK_JOURNAL]:
                opened.require_write_ahead_log()

    @event.listens_for(engine, "engine_disposed")
    def forget_file(_: Engine) -> None:
        file.forget()


def driver_connection(connection: Connection) -> sqlite3.Connection:
    """Returns the driver's own connection, for its own API and where SQLAlchemy costs too much.

    In an event loop it is SQLAlchemy's adapter of an asynchronous connection, which has `execute` and little else.
    """
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def sqlite_path(connection: sqlite3.Connection) -> str:
    """Returns the path of the file that a connection has open; empty if there is none."""
    path: str = first_row(connection, "PRAGMA database_list")[2]
    return path


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
    while first_row(connection, "PRAGMA journal_mode") != ("wal",):
        try:
            # Has an effect on an empty file only, and WAL mode writes its first page.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            pause(0.005)
    return first_row(connection, "PRAGMA journal_mode") == ("wal",)
