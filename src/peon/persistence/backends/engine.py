"""Engines whose transactions are durable once they are committed."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from sqlalchemy import URL, AsyncAdaptedQueuePool, Engine, Pool, QueuePool
from sqlalchemy.dialects.sqlite import pysqlite  # noqa: F401 - otherwise imported by the first create_engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from peon.persistence.backends import BACKENDS, backend_of
from peon.persistence.backends.address import (
    malformed_url,
    parse_url,
    with_absolute_path,
    with_asynchronous_driver,
    with_blocking_driver,
)
from peon.persistence.backends.interface import Synchronous
from peon.persistence.errors import PersistenceError
from peon.persistence.runtime.event_loop import sleep_in_event_loop
from peon.persistence.runtime.forking import keep_inherited, reset_after_fork

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

EngineT = TypeVar("EngineT", "Engine", "AsyncEngine")


def create_engine(url: str | URL, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0) -> Engine:
    """Returns an engine on which each transaction is durable once it is committed.

    On SQLite, `engine.begin()` takes the write lock at once (BEGIN IMMEDIATE), so that a transaction that reads
    and then writes cannot fail half-way. See `Database.read_transaction` for transactions that only read. The file
    and its folder are created by the first connection if they do not exist, private to their owner.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL.
        synchronous: For SQLite. `NORMAL` may lose the last commits in a power failure; the file stays intact.
        busy_timeout: Seconds to wait for a locked database. On PostgreSQL, it limits the lock waits of appends and
            migrations.

    Raises:
        PersistenceError: The URL is malformed, of another database system, or its driver is not installed.
    """
    engine = _create(sqlalchemy.create_engine, with_blocking_driver(parse_url(url)), busy_timeout, QueuePool)
    _set_up(engine, synchronous, busy_timeout, time.sleep)
    return engine


def create_async_engine(
    url: str | URL, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0
) -> "AsyncEngine":
    """Returns an engine like that of `create_engine`, for the tasks of one event loop.

    Args:
        url: Of SQLite (a file or `:memory:`) or PostgreSQL. The driver of SQLite is aiosqlite.
        synchronous: See `create_engine`.
        busy_timeout: See `create_engine`.

    Raises:
        PersistenceError: See `create_engine`.
    """
    from sqlalchemy.ext import asyncio  # threads do not need it

    if find_spec("greenlet") is None:
        raise PersistenceError("greenlet is not installed; for an event loop, install peon with its extra 'async'")
    address = with_asynchronous_driver(parse_url(url))
    engine = _create(asyncio.create_async_engine, address, busy_timeout, AsyncAdaptedQueuePool)
    _set_up(engine.sync_engine, synchronous, busy_timeout, sleep_in_event_loop)
    return engine


def for_threads(engine: Engine) -> Engine:
    """Returns an engine of the same database for threads: itself, unless it belongs to an event loop."""
    return create_engine(with_blocking_driver(engine.url)) if engine.dialect.is_async else engine


def _create(create: Callable[..., EngineT], url: URL, busy_timeout: float, pool: type[Pool]) -> EngineT:
    address = with_absolute_path(url)
    options: dict[str, Any] = {"hide_parameters": True}  # they are payloads, and would end up in logs
    options |= BACKENDS[address.get_backend_name()].engine_options(address, busy_timeout=busy_timeout, pool=pool)
    try:
        return create(address, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise PersistenceError(
            f"the driver of {address.drivername} is not installed; for PostgreSQL, install peon with its extra "
            "'postgres', or psycopg; for an event loop, with its extra 'async'"
        ) from error
    except ArgumentError:
        raise malformed_url() from None


def _set_up(engine: Engine, synchronous: Synchronous, busy_timeout: float, pause: Callable[[float], object]) -> None:
    backend_of(engine).set_up(engine, synchronous=synchronous, busy_timeout=busy_timeout, pause=pause)
    reset_after_fork(engine, _forget_inherited_connections)


def _forget_inherited_connections(engine: Engine) -> None:
    """The child process opens connections of its own."""
    keep_inherited(engine.pool)
    # As `dispose(close=False)` does, but without its event: the child must find the same file as the parent.
    engine.pool = engine.pool.recreate()
