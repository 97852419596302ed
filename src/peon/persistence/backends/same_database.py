"""Tells whether two engines or connections are of the same database, whatever their addresses are."""

from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, Pool

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.driver_errors import DriverErrors, database_name

# The pools that were found to be of the same database. Not their identities: a restarted server has another one.
_pools_of_same_database: WeakKeyDictionary[Pool, WeakSet[Pool]] = WeakKeyDictionary()


def identity(engine: Engine) -> object:
    """Returns a key that is equal only for engines on the same database."""
    with DriverErrors(engine), backend_of(engine).consistent_reads(engine).connect() as connection:
        return backend_of(engine).identity(connection)


def require_connection(connection: Connection, engine: Engine) -> None:
    """Refuses a connection to another database than the engine's, or one without transactions.

    The first connection of each other pool costs a round trip.

    Raises:
        TypeError: It is not a connection of SQLAlchemy for threads.
        ValueError: It is connected to another database, or its isolation level is AUTOCOMMIT.
        StoreUnavailable: One of the two databases cannot be reached.
    """
    if not isinstance(connection, Connection):
        raise TypeError(f"connection is one of SQLAlchemy's engine, not {type(connection).__name__}")
    with DriverErrors(connection.engine):  # the connection may have been lost
        commits_each_statement = backend_of(connection).commits_each_statement(connection)
    if commits_each_statement:
        raise ValueError(
            f"the isolation level of the connection to {database_name(connection.engine)} is AUTOCOMMIT, in which "
            "nothing can be stored together: pass a connection in a transaction, as of engine.begin()"
        )
    pool = connection.engine.pool
    if pool is engine.pool:
        return
    same = _pools_of_same_database.setdefault(engine.pool, WeakSet())
    if pool not in same:
        if not _is_of(connection, engine):
            raise ValueError("connection is one of another database than the store's")
        same.add(pool)


def _is_of(connection: Connection, engine: Engine) -> bool:
    if is_memory(engine.url) or connection.dialect.name != engine.dialect.name:
        return False
    with DriverErrors(connection.engine):
        of_connection = backend_of(connection).identity(connection)
    return of_connection == identity(engine)
