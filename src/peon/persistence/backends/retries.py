"""Transactions of the package's own, repeated when that is safe."""

import logging
import random
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name, is_disk_error
from peon.persistence.errors import StoreUnavailable
from peon.persistence.runtime.event_loop import pause
from peon.persistence.runtime.instrumentation import RetryReason
from peon.persistence.runtime.log_records import CONNECTIONS, TRANSACTIONS, report
from peon.persistence.runtime.telemetry import telemetry_of

ResultT = TypeVar("ResultT")

ATTEMPTS = 5
"""How often a transaction is tried that a server undoes in favour of another."""

FIRST_PAUSE_SECONDS = 0.01
"""The longest pause before the second attempt; it doubles before each further one."""

LONG_WAIT_SECONDS = 1.0
"""A wait for a lock that is logged. A commit to a slow disk takes a tenth of that."""

UNDONE_SQLSTATES = frozenset({"40001", "40P01"})
"""Serialisation failure and deadlock: the server has undone the transaction, even if it happened during COMMIT."""

LOST_SQLSTATES = ("08", "57P0")
"""Connection exceptions, and a server that shuts down or ends the connection."""


class OwnTransaction:
    """A transaction that its work commits.

    Attributes:
        connection: The connection whose transaction it is.
        committing: Whether the commit has begun.
        lock_seconds: How long it has waited for the write lock, as far as that was measured.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.committing = False
        self.lock_seconds = 0.0

    def commit(self) -> None:
        self.committing = True
        self.connection.commit()


def in_own_transaction(engine: Engine, driver_errors: DriverErrors, work: Callable[[Connection], ResultT]) -> ResultT:
    """Commits what the work does on a connection, and returns its result.

    Args:
        work: Must be idempotent: it may run more than once.

    Raises:
        StoreUnavailable: The database cannot be used. If the connection is lost or the disk fails during COMMIT, the
            outcome is unknown; the message says so.
    """

    def work_and_commit(own: OwnTransaction) -> ResultT:
        began = time.monotonic()
        try:
            backend_of(engine).begin_writing(own.connection)
        finally:
            own.lock_seconds = time.monotonic() - began
        result = work(own.connection)
        own.commit()
        return result

    return with_own_commit(engine, driver_errors, work_and_commit)


def with_own_commit(
    engine: Engine,
    driver_errors: DriverErrors,
    work: Callable[[OwnTransaction], ResultT],
    *,
    advice: str = "repeat the call",
) -> ResultT:
    """Like `in_own_transaction`, for work that begins and commits its transaction itself.

    Args:
        advice: What to do when the outcome is unknown; ends the error message.
    """
    engine = backend_of(engine).current_reads(engine)
    for attempt in count(1):
        reason: RetryReason | None = None
        lock_seconds = 0.0
        try:
            with driver_errors:
                own = OwnTransaction(engine.connect())
                try:
                    return work(own)
                except Exception as error:
                    reason = reason_to_repeat(
                        error, engine, driver_errors, own.connection, committing=own.committing, advice=advice
                    )
                    raise
                except BaseException:
                    end_interrupted(own.connection)
                    raise
                finally:
                    lock_seconds = own.lock_seconds
                    give_back(own.connection)
        except Exception:
            if attempt == ATTEMPTS or reason is None:
                raise
            report_retry(engine, reason, attempt)
        finally:
            if lock_seconds >= LONG_WAIT_SECONDS:
                report_wait(engine, lock_seconds)
        pause(pause_after(attempt), engine.dialect)
    raise AssertionError


def reason_to_repeat(
    error: Exception,
    engine: Engine,
    driver_errors: DriverErrors,
    connection: Connection | None,
    *,
    committing: bool,
    advice: str,
) -> RetryReason | None:
    """Returns why the transaction that ended with the error can be repeated: the server has undone, or will undo, it.

    Args:
        connection: The connection whose transaction it was; `None` if connecting failed.
        committing: Whether the commit had begun.
        advice: What to do when the outcome is unknown; ends the error message.

    Returns:
        The reason; `None` if it must not be repeated.

    Raises:
        StoreUnavailable: The connection was lost, or the disk failed, during COMMIT, so the outcome is unknown.
    """
    cause = driver_errors.cause_of(error)
    state = str(getattr(cause, "sqlstate", None))
    if state in UNDONE_SQLSTATES:
        return "undone"
    if cause is None or connection is None:
        return None
    if committing and is_disk_error(cause):
        # SQLite writes a commit to the -wal file before it syncs the file and shows the commit to anyone. The next
        # commit overwrites it; but a start after all processes were killed finds it, and takes it for committed.
        raise StoreUnavailable(
            f"{database_name(engine)}: the disk could not be read or written during the commit, which may have taken "
            f"place if the process is killed before the next one: {advice}"
        ) from cause
    # SQLAlchemy has invalidated the connection if one of its own statements met the loss. An error that the server
    # reports has an SQLSTATE; an operational error without one comes from the connection itself.
    dbapi: Any = engine.dialect.loaded_dbapi
    of_connection = getattr(cause, "sqlstate", "none") is None and isinstance(cause, dbapi.OperationalError)
    lost = connection.invalidated or state.startswith(LOST_SQLSTATES) or of_connection
    lost = lost or engine.dialect.is_disconnect(cause, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    if lost and committing:
        raise StoreUnavailable(
            f"{database_name(engine)}: the connection was lost during the commit, which may have taken place: {advice}"
        ) from cause
    return "connection_lost" if lost else None


def report_retry(engine: Engine, reason: RetryReason, attempt: int) -> None:
    """Logs and counts that a transaction is repeated.

    Args:
        attempt: The number of the attempt that has failed.
    """
    telemetry_of(engine).retried(reason)
    facts = {"database": database_name(engine), "attempt": attempt, "attempts": ATTEMPTS}
    if reason == "undone":
        report(
            TRANSACTIONS,
            logging.WARNING,
            "repeating a transaction of %(database)s, which the server has undone in favour of another "
            "(attempt %(attempt)d of %(attempts)d)",
            **facts,
        )
    else:
        report(
            CONNECTIONS,
            logging.WARNING,
            "repeating a transaction of %(database)s on another connection, because its own was lost "
            "(attempt %(attempt)d of %(attempts)d)",
            **facts,
        )


def report_wait(engine: Engine, seconds: float) -> None:
    """Logs that a transaction waited long for the write lock."""
    report(
        TRANSACTIONS,
        logging.WARNING,
        "a transaction waited %(seconds).1f s for the write lock of %(database)s",
        database=database_name(engine),
        seconds=seconds,
    )


def pause_after(attempt: int) -> float:
    """Returns the seconds to wait after an attempt; random, so that two transactions do not collide again."""
    return random.uniform(0, FIRST_PAUSE_SECONDS * 2**attempt)  # noqa: S311


def end_interrupted(connection: Connection) -> None:
    """Closes a connection whose driver was interrupted, as by a signal handler that raises, if it cannot be used again.

    A database in memory would be lost with its connection, so SQLite's remain open.
    """
    if not backend_of(connection).survives_interrupts:
        connection.invalidate()
        connection.close()


def give_back(connection: Connection) -> None:
    """Returns a connection to the pool, whatever has happened on it; does nothing if it was closed already."""
    if connection.closed:
        return
    try:
        # For SQLAlchemy a transaction whose commit failed is over; SQLite may still have it open.
        connection.dialect.do_rollback(connection.connection)
    except Exception:
        connection.invalidate()
    except BaseException:
        end_interrupted(connection)
        raise
    finally:
        connection.close()
