"""Everything that differs between SQLite and PostgreSQL.

`interface.py` says what the rest of the package needs from a database system; `sqlite.py` and `postgresql.py`
provide it. The remaining files connect to a database, run statements on it, and explain its errors.
"""

from functools import cache

from sqlalchemy import Connection, Engine

from peon.persistence.backends.interface import Backend


def backend_of(database: Engine | Connection) -> Backend:
    return backend_named(database.dialect.name)


@cache
def backend_named(name: str) -> Backend:
    """Returns a backend by the name that SQLAlchemy gives to its dialect.

    The other one is not loaded: SQLAlchemy's dialect of PostgreSQL takes 30 ms.
    """
    if name == "sqlite":
        from peon.persistence.backends.sqlite import SQLiteBackend

        return SQLiteBackend()
    if name != "postgresql":
        raise KeyError(name)
    from peon.persistence.backends.postgresql import PostgreSQLBackend

    return PostgreSQLBackend()
