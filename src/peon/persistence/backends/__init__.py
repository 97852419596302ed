"""Everything that differs between SQLite and PostgreSQL.

`interface.py` says what the rest of the package needs from a database system; `sqlite.py` and `postgresql.py`
provide it. The remaining files connect to a database, run statements on it, and explain its errors.
"""

from sqlalchemy import Connection, Engine

from peon.persistence.backends.interface import Backend
from peon.persistence.backends.postgresql import PostgreSQLBackend
from peon.persistence.backends.sqlite import SQLiteBackend

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (SQLiteBackend(), PostgreSQLBackend())}
"""By the name that SQLAlchemy gives to the dialect."""


def backend_of(database: Engine | Connection) -> Backend:
    return BACKENDS[database.dialect.name]
