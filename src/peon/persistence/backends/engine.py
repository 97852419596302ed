"""Engines: how a connection to SQLite or PostgreSQL is set up, and how its transactions begin."""

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakSet

import sqlalchemy
from sqlalchemy import URL, AsyncAdaptedQueuePool, Connection, Engine, Pool, QueuePool, event, make_url
from sqlalchemy.dialects.sqlite import pysqlite  # noqa: F401 - otherwise imported by the first create_engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from peon.config import AppConfig
from peon.persistence.backends.sqlite_write_lock import WriteTurn
from peon.persistence.errors import PersistenceError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Synchronous = Literal["FULL", "NORMAL"]

READ_ONLY = "peon_read_only"
"""Execution option of an engine or a connection: its transactions only read, so they never wait for a writer."""

WAL_SIZE_LIMIT = 64 * 1024 * 1024
"""Bytes that the -wal file of SQLite is cut back to after a checkpoint, once a long transaction has swollen it."""

MOMENT = 50
"""Milliseconds that a read waits for a lock which it can do without."""

DATABASE_FILE = "peon.db"

BUSY_TIMEOUT = "peon_busy_timeout"
"""Execution option of an engine: seconds that the package's own transactions wait for the locks of a server."""

_PATIENCE = "peon_patience"
"""Execution option of a connection: seconds that its transactions wait for SQLite's write lock."""

_ROLLBACK_JOURNAL = "peon_rollback_journal"
_WRITE_TURN = "peon_write_turn"


def database_url(config: AppConfig) -> URL:
    """Returns the address of the configured database.

    Raises:
        PersistenceError: `database.url` is no SQLAlchemy URL, or not of SQLite or PostgreSQL.
    """
    if config.database.url is None:
        return URL.create("sqlite", database=str(config.general.data_dir / DATABASE_FILE))
    return _parse(config.database.url)


def _parse(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise _not_a_url() from None
    if "\0" in (parsed.database or ""):
        raise _not_a_url()
    if backend not in ("sqlite", "postgresql"):
        raise PersistenceError(
            f"the database's URL is of {backend}; only sqlite and postgresql are supported: give sqlite:///… or "
            "postgresql+psycopg://…"
        )
    if backend == "postgresql" and (driver := parsed.get_driver_name()) != "psycopg":
        raise PersistenceError(f"the database's URL asks for {driver}; give postgresql+psycopg://…")
    return parsed


def _not_a_url() -> PersistenceError:
    # Not quoted, and without its cause: it may hold a password.
    return PersistenceError("the database's URL is not one of SQLAlchemy: give sqlite:///… or postgresql+psycopg://…")


def create_engine(url: str | URL, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0) -> Engine:
    """Returns an engine on which each transaction is durable once it is committed.

    On SQLite, `engine.begin()` takes the write lock at once (BEGIN IMMEDIATE), so that a transaction that reads
    and then writes cannot fail half-way; with the execution option `READ_ONLY` it takes none. The file and its
    folder are created by the first connection where they are absent, private to their owner.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL.
        synchronous: `NORMAL` may lose the last commits when the power fails; the file stays sound.
        busy_timeout: Seconds to wait for a locked database; on PostgreSQL, those that an append or a migration waits.

    Raises:
        PersistenceError: The URL is malformed, of another backend, or its driver is not installed.
    """
    engine = _create(sqlalchemy.create_engine, blocking_url(_parse(url)), busy_timeout, QueuePool)
    if engine.dialect.name == "sqlite":
        _listen_sqlite(engine, synchronous, busy_timeout)
    else:
        _listen_postgresql(engine)
    _engines.add(engine)
    return engine


def create_async_engine(
    url: str | URL, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0
) -> "AsyncEngine":
    """Returns an engine like that of `create_engine`, for the tasks of one event loop.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL. The driver of SQLite is aiosqlite.
        synchronous: As of `create_engine`.
        busy_timeout: As of `create_engine`.

    Raises:
        PersistenceError: As of `create_engine`.
    """
    from asyncio import sleep  # none of this is needed by those who use threads

    from sqlalchemy.ext import asyncio
    from sqlalchemy.util import await_only

    if find_spec("greenlet") is None:
        raise PersistenceError("greenlet is not installed; for an event loop, install peon with its extra 'async'")
    url = _parse(url)
    if url.get_backend_name() == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")
    engine = _create(asyncio.create_async_engine, url, busy_timeout, AsyncAdaptedQueuePool)
    if url.get_backend_name() == "sqlite":
        _listen_sqlite(engine.sync_engine, synchronous, busy_timeout, pause=lambda seconds: await_only(sleep(seconds)))
    else:
        _listen_postgresql(engine.sync_engine)
    _engines.add(engine.sync_engine)
    return engine


EngineT = TypeVar("EngineT", "Engine", "AsyncEngine")


def _create(create: Callable[..., EngineT], url: URL, busy_timeout: float, pool: type[Pool]) -> EngineT:
    parsed = _with_absolute_path(url)
    options: dict[str, Any] = {"hide_parameters": True}  # they are payloads, and would end up in logs
    if parsed.get_backend_name() == "sqlite":
        options |= _sqlite_options(parsed, busy_timeout, pool)
    else:
        # A server may have ended an idle connection, or been restarted.
        options["pool_pre_ping"] = True
        # Whatever the server's default is: who waited for a lock must see what its last holder did.
        options["isolation_level"] = "READ COMMITTED"
        # Whatever address, environment, role and database say: text in any other could not be sent, or not be read.
        options["connect_args"] = {"client_encoding": "utf8"}
        options["execution_options"] = {BUSY_TIMEOUT: busy_timeout}
    try:
        return create(parsed, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise PersistenceError(
            f"the driver of {parsed.drivername} is not installed; for PostgreSQL, install peon with its extra "
            "'postgres', or psycopg; for an event loop, with its extra 'async'"
        ) from error
    except ArgumentError:
        raise _not_a_url() from None


def single_reads(engine: Engine) -> Engine:
    """Returns the engine for reads of one statement each, which need no transaction."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{READ_ONLY: True})
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def consistent_reads(engine: Engine) -> Engine:
    """Returns the engine with transactions that only read, and see one committed state from first to last."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{READ_ONLY: True})
    return engine.execution_options(isolation_level="REPEATABLE READ")


def with_blocking_driver(engine: Engine) -> Engine:
    """Returns an engine of the same database for threads: itself, unless it belongs to an event loop."""
    return create_engine(blocking_url(engine.url)) if engine.dialect.is_async else engine


def blocking_url(url: URL) -> URL:
    """Returns the address with the driver for threads; psycopg is for both."""
    return url.set(drivername="sqlite") if url.drivername == "sqlite+aiosqlite" else url


def is_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not is_memory(url) and "uri" not in url.query


def _with_absolute_path(url: URL) -> URL:
    """So that a later change of the working directory does not lead to another file."""
    if not is_file(url):
        return url
    try:
        return url.set(database=str(Path(str(url.database)).expanduser().absolute()))
    except RuntimeError as error:
        raise PersistenceError("the home folder in the database's URL is not known") from error


def _sqlite_options(url: URL, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
    # The driver begins no transaction of its own accord; the listener below does.
    connect_args: dict[str, Any] = {"isolation_level": None}
    if sys.version_info >= (3, 12):
        connect_args["autocommit"] = sqlite3.LEGACY_TRANSACTION_CONTROL
    if not is_memory(url):
        return {"connect_args": connect_args}
    # A database in memory is its connection: all threads take turns with the only one.
    connect_args["check_same_thread"] = False
    only_one = {"poolclass": pool, "pool_size": 1, "max_overflow": 0, "pool_timeout": busy_timeout}
    return {"connect_args": connect_args, **only_one}


def _listen_sqlite(
    engine: Engine, synchronous: Synchronous, busy_timeout: float, pause: Callable[[float], object] = time.sleep
) -> None:
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
        record.info[_WRITE_TURN] = WriteTurn(path and path.parent, milliseconds, pause)
        if not in_memory:
            record.info[_ROLLBACK_JOURNAL] = connection.execute("PRAGMA journal_mode").fetchone() != ("wal",)
            # Without a limit the -wal file keeps the size that the largest transaction gave it.
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
            # A rebuild fills temporary tables, in many transactions: a file for each takes half of its time.
            connection.execute("PRAGMA temp.journal_mode = MEMORY")
        # FULL: a commit has reached the disk before it is acknowledged. macOS needs a word more for that.
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA fullfsync = {synchronous == 'FULL'}")
        # Off by default in SQLite; the projection tables rely on it.
        connection.execute("PRAGMA foreign_keys = ON")
        # Lets the triggers that refuse a delete also see the one hidden in INSERT OR REPLACE.
        connection.execute("PRAGMA recursive_triggers = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        info = connection.info
        turn = info[_WRITE_TURN]
        # Past SQLAlchemy: through it, the statement takes a tenth of an append of one event.
        driver = sqlite_connection(connection)
        try:
            if options.get(READ_ONLY):
                turn.let_sqlite_wait(driver)
                driver.execute("BEGIN")
                return
            patience = options.get(_PATIENCE, busy_timeout)
            # Not at once, since it changes the file, which may turn out to be another application's.
            if info.get(_ROLLBACK_JOURNAL):
                info[_ROLLBACK_JOURNAL] = not _use_write_ahead_log(driver, time.monotonic() + patience, pause)
            turn.take(driver, patience)
            if info.get(_ROLLBACK_JOURNAL):
                turn.let_sqlite_wait(driver)  # at the commit, for readers
        except sqlite3.OperationalError as error:
            raise OperationalError("BEGIN", None, error) from error

    @event.listens_for(engine, "reset")
    def let_sqlite_wait(connection: sqlite3.Connection, record: ConnectionPoolEntry | None, _: object) -> None:
        if record is not None:  # as it is for a detached connection, which is closed
            record.info[_WRITE_TURN].let_sqlite_wait(connection)


def _listen_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def refuse_another_encoding(connection: Any, _: object) -> None:
        encoding = connection.info.parameter_status("server_encoding")  # a server says it unasked
        if encoding != "UTF8":
            name = connection.info.dbname
            connection.close()
            raise PersistenceError(
                f"the database {name!r} stores text as {encoding}, which does not hold all characters: name one that "
                "was created with ENCODING 'UTF8'"
            )


def sqlite_connection(connection: Connection) -> sqlite3.Connection:
    """Returns the driver's own connection, for what its API alone offers and where SQLAlchemy costs too much.

    In an event loop it is SQLAlchemy's adapter of one, which has `execute`, and little else.
    """
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def begin_writing(connection: Connection) -> None:
    """Makes sure that a transaction is open, in SQLite too.

    On an engine made elsewhere Python's sqlite3 opens one only for an INSERT, and none for a SAVEPOINT, whose
    end would then be a commit.
    """
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite" and not driver.in_transaction:
        sqlite_connection(connection).execute("BEGIN IMMEDIATE")


@contextmanager
def transaction_without_waiting(engine: Engine) -> Iterator[Connection]:
    """Begins a transaction whose statements fail when they have to wait for others for longer than a moment."""
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection = connection.execution_options(**{_PATIENCE: MOMENT / 1000})
        with connection.begin():
            if connection.dialect.name != "sqlite":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {MOMENT}")
            yield connection


@contextmanager
def large_cache(connection: Connection) -> Iterator[None]:
    """Gives SQLite 16 MB for pages instead of 2: rows with random keys in many tables touch more than those hold."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = sqlite_connection(connection)
    (before,) = driver.execute("PRAGMA cache_size").fetchone()
    driver.execute("PRAGMA cache_size = -16000")
    try:
        yield
    finally:
        with suppress(sqlite3.ProgrammingError):  # an interrupt in the middle of a statement closes the connection
            driver.execute(f"PRAGMA cache_size = {before}")


def create_private_file(path: Path) -> None:
    """SQLite would create the file with the permissions of the umask; -wal and -shm take after the file."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another process was faster
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _use_write_ahead_log(connection: sqlite3.Connection, deadline: float, pause: Callable[[float], object]) -> bool:
    """With it, readers and the writer do not wait for one another, and a commit is a single write.

    The mode is a lasting property of the file. SQLite does not wait for the lock that the change needs.

    Returns:
        Whether it is used: not every virtual file system of SQLite can.
    """
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            pause(0.005)
    mode: tuple[str] = connection.execute("PRAGMA journal_mode").fetchone()
    return mode == ("wal",)


_engines: WeakSet[Engine] = WeakSet()
_inherited: list[object] = []


def _forget_inherited_connections() -> None:
    """A connection must not be used on both sides of a fork; the child opens its own.

    Nor may it be closed, which would end locks that the child has taken since, or the parent's session on a
    server: https://sqlite.org/howtocorrupt.html, section 2.6. So it is kept, unused.
    """
    for engine in _engines:
        _inherited.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_connections)
