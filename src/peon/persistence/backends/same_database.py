"""Which database an engine or a connection is of, whatever its address is."""

from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, Pool, text

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.engine import consistent_reads, is_memory

# The address does not tell: one server has many names, and the options choose the schema. Of a database without a log
# the last but one is null, and not an error, which would end a transaction of the caller's.
_POSTGRESQL_IDENTITY = text(
    "SELECT pg_postmaster_start_time(), CAST(to_regclass('events') AS oid), "
    "(SELECT oid FROM pg_database WHERE datname = current_database())"
)

# Not the identities: a server that is started again has another one.
_of_the_same: WeakKeyDictionary[Pool, WeakSet[Pool]] = WeakKeyDictionary()


def identity(engine: Engine) -> object:
    """Returns what is equal for the same database only."""
    with DriverErrors(engine), consistent_reads(engine).connect() as connection:
        return _identity(connection)


def _identity(connection: Connection) -> object:
    if connection.dialect.name == "postgresql":
        return tuple(connection.execute(_POSTGRESQL_IDENTITY).one())
    files = {database.name: database.file for database in connection.exec_driver_sql("PRAGMA database_list")}
    if not files["main"]:
        return id(connection.engine.pool)
    file = Path(files["main"]).stat()
    return file.st_dev, file.st_ino


def require_connection(connection: Connection, engine: Engine) -> None:
    """Refuses a connection that is not one of the engine's database.

    The first connection of another pool is asked, which is a round trip.

    Raises:
        TypeError: It is not a connection of SQLAlchemy for threads.
        ValueError: It is one of another database.
        StoreUnavailable: One of the two databases cannot be asked.
    """
    if not isinstance(connection, Connection):
        raise TypeError(f"connection is one of SQLAlchemy's engine, not {type(connection).__name__}")
    pool = connection.engine.pool
    if pool is engine.pool:
        return
    same = _of_the_same.setdefault(engine.pool, WeakSet())
    if pool not in same:
        if not _is_of(connection, engine):
            raise ValueError("connection is one of another database than the store's")
        same.add(pool)


def _is_of(connection: Connection, engine: Engine) -> bool:
    if is_memory(engine.url) or connection.dialect.name != engine.dialect.name:
        return False
    with DriverErrors(connection.engine):
        of_connection = _identity(connection)
    return of_connection == identity(engine)
