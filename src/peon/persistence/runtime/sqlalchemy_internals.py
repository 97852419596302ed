"""The names of SQLAlchemy that are not part of its documented interface, each with the reason for using it.

They are collected here so that a new release of SQLAlchemy has one file to be checked against. `pyproject.toml`
limits SQLAlchemy to the releases that were tested.
"""

from typing import Any

from sqlalchemy import Compiled, Connection
from sqlalchemy.sql.compiler import ExpandedState, SQLCompiler

# Awaits a coroutine from blocking code that SQLAlchemy runs in a greenlet, and starts such code. The asynchronous
# face runs the same code as the blocking one; AsyncSession.run_sync is built on these two, but needs a session.
from sqlalchemy.util import await_only as await_in_greenlet
from sqlalchemy.util import greenlet_spawn as run_in_greenlet

__all__ = ["await_in_greenlet", "expand_parameters", "is_autocommit", "positional_names", "run_in_greenlet"]


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
