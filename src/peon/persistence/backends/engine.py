"""Engines whose transactions are durable once they are committed."""

import math
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy
from sqlalchemy import URL, AsyncAdaptedQueuePool, Dialect, Engine, Pool, QueuePool
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from peon.config import DEFAULT_VERSION_TABLE, AppConfig
from peon.persistence.backends import backend_named, backend_of
from peon.persistence.backends.address import (
    database_url,
    is_memory,
    malformed_url,
    parse_url,
    with_absolute_path,
    with_asynchronous_driver,
    with_blocking_driver,
)
from peon.persistence.backends.interface import Access, Synchronous
from peon.persistence.backends.version_table import VERSION_TABLE, checked_version_table
from peon.persistence.errors import PersistenceError
from peon.persistence.runtime.event_loop import sleep_in_event_loop
from peon.persistence.runtime.forking import keep_inherited, reset_after_fork

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

EngineT = TypeVar("EngineT", "Engine", "AsyncEngine")


def create_engine(
    url: str | URL,
    *,
    synchronous: Synchronous = "FULL",
    busy_timeout: float = 10.0,
    pool_size: int | None = None,
    pool_timeout: float | None = None,
    connect_args: Mapping[str, Any] | None = None,
    version_table: str = DEFAULT_VERSION_TABLE,
    echo: bool = False,
) -> Engine:
    """Returns an engine on which each transaction is durable once it is committed.

    On SQLite, `engine.begin()` takes the write lock at once (BEGIN IMMEDIATE), so that a transaction that reads
    and then writes cannot fail half-way. See `Database.read_transaction` for transactions that only read. The file
    and its folder are created by the first connection if they do not exist, private to their owner.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL.
        synchronous: For SQLite. `NORMAL` may lose the last commits in a power failure; the file stays intact.
        busy_timeout: Seconds to wait for a locked database. On PostgreSQL, it limits the lock waits of appends and
            migrations.
        pool_size: How many connections the pool keeps, 0 for no limit; by default SQLAlchemy's 5. As with
            SQLAlchemy, up to 10 more are opened when they are needed. A database in memory has a single one.
        pool_timeout: Seconds to wait for a connection of the pool; by default SQLAlchemy's 30, and `busy_timeout`
            for a database in memory.
        connect_args: Further arguments of the driver's `connect`, such as `keepalives` or `prepare_threshold`.
        version_table: The table in which migrations keep the revision of Peon's tables.
        echo: Log each statement, without its parameters, to the logger `sqlalchemy.engine.Engine` and to standard
            output. See SQLAlchemy's `create_engine`.

    Raises:
        PersistenceError: The URL is malformed, of another database system, or its driver is not installed.
        TypeError: `pool_size`, `pool_timeout`, `connect_args` or `version_table` is of the wrong type.
        ValueError: `pool_size` or `pool_timeout` is out of range, the pool of a database in memory is to have several
            connections, `connect_args` has an argument that Peon sets itself, or no version table can have the name.
    """
    options = _Options(busy_timeout, pool_size, pool_timeout, connect_args or {}, version_table, echo)
    engine = _create(sqlalchemy.create_engine, with_blocking_driver(parse_url(url)), options, QueuePool)
    _set_up(engine, synchronous, options, time.sleep)
    return engine


class EngineArguments(TypedDict):
    """The arguments of `create_engine`."""

    url: str | URL
    synchronous: Synchronous
    busy_timeout: float
    pool_size: int | None
    pool_timeout: float | None
    connect_args: Mapping[str, Any] | None
    version_table: str
    echo: bool


def engine_arguments(
    config: AppConfig | None, url: str | URL | None, connect_args: Mapping[str, Any] | None, *, echo: bool
) -> EngineArguments:
    """Returns the configured address, or the one that is given instead, with the configured options."""
    if not isinstance(config, AppConfig | None):
        raise TypeError("a database is opened with an AppConfig; an address is given as url=…")
    config = config or AppConfig()
    return {
        "url": database_url(config) if url is None else url,
        "synchronous": config.database.synchronous,
        "busy_timeout": config.database.busy_timeout,
        "pool_size": config.database.pool_size,
        "pool_timeout": config.database.pool_timeout,
        "connect_args": connect_args,
        "version_table": config.database.version_table,
        "echo": echo,
    }


def create_reading_engine(
    url: str | URL,
    *,
    access: Access,
    busy_timeout: float = 10.0,
    pool_size: int | None = None,
    pool_timeout: float | None = None,
    connect_args: Mapping[str, Any] | None = None,
    version_table: str = DEFAULT_VERSION_TABLE,
    echo: bool = False,
) -> Engine:
    """Returns an engine whose transactions only read. It creates no file, and changes none.

    Args:
        url: See `create_engine`.
        access: "read", or "read and compute" to allow temporary tables.
        busy_timeout: See `create_engine`.
        pool_size: See `create_engine`.
        pool_timeout: See `create_engine`.
        connect_args: See `create_engine`.
        version_table: See `create_engine`.
        echo: See `create_engine`.

    Raises:
        PersistenceError: See `create_engine`.
        TypeError: See `create_engine`.
        ValueError: See `create_engine`.
    """
    options = _Options(busy_timeout, pool_size, pool_timeout, connect_args or {}, version_table, echo)
    engine = _create(sqlalchemy.create_engine, with_blocking_driver(parse_url(url)), options, QueuePool)
    _set_up(engine, "FULL", options, time.sleep, access)
    return backend_of(engine).reads_only(engine, access)


def create_async_engine(
    url: str | URL,
    *,
    synchronous: Synchronous = "FULL",
    busy_timeout: float = 10.0,
    pool_size: int | None = None,
    pool_timeout: float | None = None,
    connect_args: Mapping[str, Any] | None = None,
    version_table: str = DEFAULT_VERSION_TABLE,
    echo: bool = False,
) -> "AsyncEngine":
    """Returns an engine like that of `create_engine`, for the tasks of one event loop.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL. The driver of SQLite is aiosqlite.
        synchronous: See `create_engine`.
        busy_timeout: See `create_engine`.
        pool_size: See `create_engine`.
        pool_timeout: See `create_engine`.
        connect_args: See `create_engine`.
        version_table: See `create_engine`.
        echo: See `create_engine`.

    Raises:
        PersistenceError: See `create_engine`.
        TypeError: See `create_engine`.
        ValueError: See `create_engine`.
    """
    from sqlalchemy.ext import asyncio  # threads do not need it

    if find_spec("greenlet") is None:
        raise PersistenceError("greenlet is not installed; for an event loop, install peon with its extra 'async'")
    address = with_asynchronous_driver(parse_url(url))
    options = _Options(busy_timeout, pool_size, pool_timeout, connect_args or {}, version_table, echo)
    engine = _create(asyncio.create_async_engine, address, options, AsyncAdaptedQueuePool)
    _set_up(engine.sync_engine, synchronous, options, sleep_in_event_loop)
    return engine


def for_threads(engine: Engine) -> Engine:
    """Returns an engine of the same database for threads: itself, unless it belongs to an event loop."""
    if not engine.dialect.is_async:
        return engine
    return create_engine(with_blocking_driver(engine.url), connect_args=_connect_args.get(engine.dialect))


class _Options(NamedTuple):
    busy_timeout: float
    pool_size: int | None
    pool_timeout: float | None
    connect_args: Mapping[str, Any]
    version_table: str
    echo: bool


# By dialect: an engine has one for its whole life, and shares it with those that are derived from it. Not an execution
# option, because SQLAlchemy logs those, and the arguments may contain a password.
_connect_args: WeakKeyDictionary[Dialect, Mapping[str, Any]] = WeakKeyDictionary()


def _create(create: Callable[..., EngineT], url: URL, given: _Options, pool: type[Pool]) -> EngineT:
    address = with_absolute_path(url)
    options: dict[str, Any] = {
        "echo": given.echo,
        "hide_parameters": True,
    }  # they are payloads, and would end up in logs
    backend = backend_named(address.get_backend_name())
    options |= backend.engine_options(address, busy_timeout=given.busy_timeout, pool=pool)
    options |= _pool_options(address, given, pool)
    options["execution_options"] = {
        **options.get("execution_options", {}),
        VERSION_TABLE: checked_version_table(given.version_table),
    }
    options["connect_args"] = _merged(given.connect_args, options["connect_args"])
    try:
        return create(address, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise PersistenceError(
            f"the driver of {address.drivername} is not installed; for PostgreSQL, install peon with its extra "
            "'postgres', or psycopg; for an event loop, with its extra 'async'"
        ) from error
    except ArgumentError:
        raise malformed_url() from None


def _pool_options(url: URL, given: _Options, pool: type[Pool]) -> dict[str, Any]:
    """Returns the options that were given, after checking them."""
    options: dict[str, Any] = {}
    if given.pool_size is not None:
        if type(given.pool_size) is not int:  # `True` is not a number here
            raise TypeError(f"pool_size is a whole number, not {type(given.pool_size).__name__}")
        if given.pool_size < 0:
            raise ValueError(f"pool_size is {given.pool_size}: give a number of connections, or 0 for no limit")
        if is_memory(url) and given.pool_size != 1:
            raise ValueError(
                f"pool_size is {given.pool_size}, but a database in memory has a single connection: leave pool_size "
                "out, or name a file"
            )
        options["pool_size"] = given.pool_size
    if given.pool_timeout is not None:
        if type(given.pool_timeout) not in (int, float):
            raise TypeError(f"pool_timeout is a number of seconds, not {type(given.pool_timeout).__name__}")
        if not 0 <= given.pool_timeout < math.inf:
            raise ValueError(f"pool_timeout is {given.pool_timeout}: give a number of seconds from 0")
        options["pool_timeout"] = given.pool_timeout
    return options | {"poolclass": pool} if options else {}


def _merged(given: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"connect_args is a dictionary, not {type(given).__name__}")
    for name in ours:
        if name in given and given[name] != ours[name]:
            raise ValueError(f"connect_args has {name}, which Peon sets itself: leave it out")
    return {**given, **ours}


def _set_up(
    engine: Engine,
    synchronous: Synchronous,
    given: _Options,
    pause: Callable[[float], object],
    access: Access = "write",
) -> None:
    backend_of(engine).set_up(
        engine, synchronous=synchronous, busy_timeout=given.busy_timeout, pause=pause, access=access
    )
    _connect_args[engine.dialect] = given.connect_args
    reset_after_fork(engine, _forget_inherited_connections)


def _forget_inherited_connections(engine: Engine) -> None:
    """The child process opens connections of its own."""
    keep_inherited(engine.pool)
    # As `dispose(close=False)` does, but without its event: the child must find the same file as the parent.
    engine.pool = engine.pool.recreate()
