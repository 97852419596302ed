"""Transactions of the package's own, repeated when that is safe."""

import random
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.errors import StoreUnavailable
from peon.persistence.runtime.event_loop import pause

ResultT = TypeVar("ResultT")

ATTEMPTS = 5
"""How often a transaction is tried that a server undoes in favour of another."""

FIRST_PAUSE_SECONDS = 0.01
"""The longest pause before the second attempt; it doubles before each further one."""

UNDONE_SQLSTATES = frozenset({"40001", "40P01"})
"""Serialisation failure and deadlock: the server has undone the transaction, even if it happened during COMMIT."""

LOST_SQLSTATES = ("08", "57P0")
"""Connection exceptions, and a server that shuts down or ends the connection."""


class OwnTransaction:
    """A transaction that its work commits.

    Attributes:
        connection: The connection whose transaction it is.
        committing: Whether the commit has begun.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.committing = False

    def commit(self) -> None:
        self.committing = True
        self.connection.commit()


def in_own_transaction(engine: Engine, driver_errors: DriverErrors, work: Callable[[Connection], ResultT]) -> ResultT:
    """Commits what the work does on a connection, and returns its result.

    Args:
        work: Must be idempotent: it may run more than once.

    Raises:
        StoreUnavailable: The database cannot be used. If the connection is lost during COMMIT, the outcome is
            unknown; the message says so.
    """

    def work_and_commit(own: OwnTransaction) -> ResultT:
        backend_of(engine).begin_writing(own.connection)
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
        repeatable = False
        try:
            with driver_errors:
                own = OwnTransaction(engine.connect())
                try:
                    return work(own)
                except Exception as error:
                    repeatable = is_safe_to_repeat(
                        error, engine, driver_errors, own.connection, committing=own.committing, advice=advice
                    )
                    raise
                except BaseException:
                    end_interrupted(own.connection)
                    raise
                finally:
                    give_back(own.connection)
        except Exception:
            if attempt == ATTEMPTS or not repeatable:
                raise
        pause(pause_after(attempt), engine.dialect)
    raise AssertionError


def is_safe_to_repeat(
    error: Exception,
    engine: Engine,
    driver_errors: DriverErrors,
    connection: Connection | None,
    *,
    committing: bool,
    advice: str,
) -> bool:
    """Returns whether the server has undone, or will undo, the transaction that ended with the error.

    Args:
        connection: The connection whose transaction it was; `None` if connecting failed.
        committing: Whether the commit had begun.
        advice: What to do when the outcome is unknown; ends the error message.

    Raises:
        StoreUnavailable: The connection was lost during COMMIT, so the outcome is unknown.
    """
    cause = driver_errors.cause_of(error)
    state = str(getattr(cause, "sqlstate", None))
    if state in UNDONE_SQLSTATES:
        return True
    if cause is None or connection is None:
        return False
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
    return lost


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
