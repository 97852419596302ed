"""The names of SQLAlchemy that are not part of its documented interface, each with the reason for using it.

They are collected here so that a new release of SQLAlchemy has one file to be checked against. `pyproject.toml`
limits SQLAlchemy to the releases that were tested.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from sqlalchemy import Compiled, Connection
from sqlalchemy.sql.compiler import ExpandedState, SQLCompiler

# Awaits a coroutine from blocking code that SQLAlchemy runs in a greenlet, and starts such code. The asynchronous
# face runs the same code as the blocking one; AsyncSession.run_sync is built on these two, but needs a session.
from sqlalchemy.util import await_only as await_in_greenlet
from sqlalchemy.util import greenlet_spawn as run_in_greenlet

__all__ = [
    "await_in_greenlet",
    "can_skip_execution_context",
    "expand_parameters",
    "is_autocommit",
    "positional_names",
    "raise_driver_error",
    "run_in_greenlet",
]


def positional_names(compiled: Compiled) -> list[str] | None:
    """Returns the names of the parameters in the order in which the driver expects their values.

    There is no public way to learn the order from a compiled statement.
    """
    names: list[str] | None = compiled.positiontup  # type: ignore[attr-defined]
    return names


def is_autocommit(connection: Connection) -> bool:
    """Returns whether the isolation level of a connection, by itself or by its engine, is AUTOCOMMIT.

    `Connection.get_isolation_level` never returns AUTOCOMMIT, and the execution options lack the level that an engine
    was created with.
    """
    return connection._is_autocommit_isolation()


def expand_parameters(compiled: SQLCompiler, parameters: dict[str, Any]) -> ExpandedState:
    """Returns the text and the parameters of a statement whose IN lists depend on the values."""
    return compiled.construct_expanded_state(parameters)


def can_skip_execution_context(connection: Connection) -> bool:
    """Returns whether `exec_driver_sql` would only execute its statement: nobody listens to it, and nothing forbids it.

    Its execution context exists for listeners, and takes longer than SQLite needs for most statements. There is no
    public way to ask for listeners, which may come and go between two statements.
    """
    if not connection.in_transaction() or connection._echo:
        return False
    nested, block = connection._nested_transaction, connection._trans_context_manager
    if (nested and not nested.is_active) or (block and not block._transaction_is_active()):
        return False
    listeners, of_driver = connection.dispatch, connection.dialect.dispatch
    return not (
        listeners.before_cursor_execute
        or listeners.after_cursor_execute
        or of_driver.do_execute
        or of_driver.do_executemany
        or of_driver.do_execute_no_params
        or of_driver.handle_error
    )


def raise_driver_error(
    connection: Connection, error: BaseException, cursor: Any, statement: str, parameters: Sequence[Any]
) -> NoReturn:
    """Does with the error of a cursor what `exec_driver_sql` does: wraps it, and gives up a connection that is lost.

    There is no public way to tell a connection that its driver has failed.
    """
    # Without a context, SQLAlchemy would wrap all errors of a statement, not only those of the driver. It does wrap all
    # where there is no cursor yet.
    of_driver = cursor is None or isinstance(error, connection.dialect.loaded_dbapi.Error)
    connection._handle_dbapi_exception(error, statement if of_driver else None, parameters, cursor, None)
