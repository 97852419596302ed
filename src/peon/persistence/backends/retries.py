"""Transactions of the package's own, repeated where that is safe."""

import random
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.errors import StoreUnavailable
from peon.persistence.runtime.event_loop import pause

ResultT = TypeVar("ResultT")

ATTEMPTS = 5
"""How often a transaction is tried that a server undoes in favour of another."""

PAUSE = 0.01
"""Seconds before the second attempt, at most; twice as long before each further one."""

UNDONE = frozenset({"40001", "40P01"})
"""SQLSTATE of a serialisation failure and of a deadlock: the server has undone the transaction, even at its commit."""

LOST = ("08", "57P0")
"""SQLSTATE of connection exceptions, and of a server that shuts down or ends the connection."""


class OwnTransaction:
    """A transaction that its work commits.

    Attributes:
        connection: The one whose transaction it is.
        committing: Whether the commit was begun.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.committing = False

    def commit(self) -> None:
        self.committing = True
        self.connection.commit()


def in_own_transaction(engine: Engine, driver_errors: DriverErrors, work: Callable[[Connection], ResultT]) -> ResultT:
    """Commits what the work does on a connection, and returns what it returns.

    The work may be done several times, and whoever calls may repeat it: it must do no harm when it is done again.

    Raises:
        StoreUnavailable: As its docstring has it.
    """

    def work_and_commit(own: OwnTransaction) -> ResultT:
        own.connection.begin()  # the driver's statements do not begin it
        result = work(own.connection)
        own.commit()
        return result

    return with_own_commit(engine, driver_errors, work_and_commit)


def with_own_commit(engine: Engine, driver_errors: DriverErrors, work: Callable[[OwnTransaction], ResultT]) -> ResultT:
    """As `in_own_transaction`, for work that begins and commits its transaction itself."""
    if engine.dialect.name != "sqlite":
        # Whatever the engine's default is: who waited for a lock must see what its last holder did.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    for attempt in count(1):
        repeatable = False
        try:
            with driver_errors:
                own = OwnTransaction(engine.connect())
                try:
                    return work(own)
                except Exception as error:
                    repeatable = is_safe_to_repeat(
                        error,
                        engine,
                        driver_errors,
                        own.connection,
                        committing=own.committing,
                        advice="repeat the call",
                    )
                    raise
                finally:
                    give_back(own.connection)
        except Exception:
            if attempt == ATTEMPTS or not repeatable:
                raise
        pause(length_of_pause(attempt), engine.dialect)
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
    """Returns whether the server has undone the transaction that ended with the error, or will.

    Args:
        connection: The one whose transaction it was; `None` where there was none to be had.
        committing: Whether the commit was begun.
        advice: Ends the message where nobody knows.

    Raises:
        StoreUnavailable: The connection was lost during the commit.
    """
    cause = driver_errors.cause_of(error)
    state = str(getattr(cause, "sqlstate", None))
    if state in UNDONE:
        return True
    if cause is None or connection is None:
        return False
    # SQLAlchemy has invalidated it where the loss met a statement of its own. What a server says has an SQLSTATE;
    # an operational error without one is of the connection itself.
    dbapi: Any = engine.dialect.loaded_dbapi
    of_connection = getattr(cause, "sqlstate", "none") is None and isinstance(cause, dbapi.OperationalError)
    lost = connection.invalidated or state.startswith(LOST) or of_connection
    lost = lost or engine.dialect.is_disconnect(cause, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    if lost and committing:
        raise StoreUnavailable(
            f"{database_name(engine)}: the connection was lost during the commit, which may have taken place: {advice}"
        ) from cause
    return lost


def length_of_pause(attempt: int) -> float:
    """Returns the seconds to wait after an attempt, so that two do not meet again."""
    return random.uniform(0, PAUSE * 2**attempt)  # noqa: S311


def give_back(connection: Connection) -> None:
    """Gives a connection back to the pool, whatever has happened on it."""
    try:
        # SQLAlchemy takes a transaction whose commit failed to be over; SQLite may have it open still.
        connection.dialect.do_rollback(connection.connection)
    except Exception:
        connection.invalidate()
    finally:
        connection.close()
