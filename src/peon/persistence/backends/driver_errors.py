"""Converts the exceptions of drivers into `StoreUnavailable`, so that none of them leaves the package."""

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from peon.persistence.backends.address import is_file
from peon.persistence.backends.postgresql_privileges import INSUFFICIENT_PRIVILEGE, INVALID_SCHEMA_NAME, advice
from peon.persistence.backends.sqlite_file_locks import explain_failed_lock
from peon.persistence.errors import StoreUnavailable
from peon.persistence.schema import MAXIMUM_SEQUENCE

LOCK_NOT_AVAILABLE = "55P03"
"""The SQLSTATE of a statement that reached its lock timeout."""

DAMAGED_SQLSTATES = ("XX001", "XX002")
"""SQLSTATEs of damaged pages of tables and of indexes."""

MIGRATION_HINT = ". Has the database been migrated? alembic upgrade head does that"

_LOCKED = (
    "it is locked by another connection: end the transaction that holds the lock, "
    "pass your own transaction as connection=…, or raise database.busy_timeout"
)
_DAMAGED = (
    "the file is damaged: restore a backup. Without one, open it with maintain_projections=False: "
    "projections.rebuild() repairs the tables that are derived from the log, and salvage_database() copies all events "
    "that can be read"
)
_SQLITE_ADVICE = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: "it is read-only: give this user write permission for the file and its folder",
    sqlite3.SQLITE_PERM: "access is denied: give this user read and write permission for the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: name a regular file in a folder that this user may write to",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database: name another file, or move this one away",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "the disk could not be read or written: check its space, its limits and its health",
    sqlite3.SQLITE_TOOBIG: "a value is larger than SQLite stores (1 GB by default)",
}


def database_name(engine: Engine) -> str:
    """Returns the address without its password, as errors and logs show it."""
    hidden = {name: "***" for name in engine.url.query if "password" in name}
    return engine.url.update_query_dict(hidden).render_as_string(hide_password=True)


class DriverErrors:
    """`with driver_errors:` converts what the driver of `engine` raises inside into `StoreUnavailable`.

    The object has no state, and serves any number of threads.

    Args:
        expects_tables: Whether to ask about migrations if a statement itself failed, as with a missing table.
    """

    def __init__(self, engine: Engine, *, expects_tables: bool = False) -> None:
        self._database = database_name(engine)
        self._file = Path(str(engine.url.database)) if is_file(engine.url) else None
        self._hint = MIGRATION_HINT if expects_tables else ""
        dbapi: Any = engine.dialect.loaded_dbapi
        self._driver_error: type[Exception] = dbapi.Error
        self._errors = (SQLAlchemyError, dbapi.Error, OSError, UnicodeError)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # UnicodeError: SQLite quotes damaged text in a message, which the driver cannot decode; and an engine created
        # elsewhere may talk to a server in an encoding that lacks some characters.
        if isinstance(error, self._errors):
            if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
                error.object = type(error.object)()  # its text, which may be a payload
            # The driver's own error: SQLAlchemy's wrapper may show parameters, which are payloads.
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            hint = self._hint if _is_at_fault(cause) else ""
            unavailable = StoreUnavailable(f"{self._database}: {explain(cause, self._file)}{hint}")
            for note in getattr(error, "__notes__", ()):
                unavailable.add_note(note)
            raise unavailable from cause

    def is_lock_timeout(self, error: BaseException) -> bool:
        """Returns whether a server ended the wait for a lock."""
        return getattr(self.cause_of(error), "sqlstate", None) == LOCK_NOT_AVAILABLE

    def cause_of(self, error: BaseException) -> Exception | None:
        """Returns the driver's own error that this one wraps or was raised from, if any."""
        found: BaseException | None = error
        while found is not None and not isinstance(found, self._driver_error):
            found = found.orig if isinstance(found, DBAPIError) else found.__cause__
        return found


def no_sequence_left(connection: Connection) -> StoreUnavailable:
    """Returns the error of an append that would need a sequence above the largest one."""
    return StoreUnavailable(
        f"{database_name(connection.engine)}: the log has no sequence left, because {MAXIMUM_SEQUENCE} is the largest "
        "one: an event, or the row of sqlite_sequence, was given a large number by hand; restore a backup"
    )


def is_disk_error(error: BaseException) -> bool:
    """Returns whether SQLite could not read, write or sync a file. A full disk has another error."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_IOERR


def explain(error: BaseException, file: Path | None = None) -> str:
    """Returns what went wrong, and what to do if that is known, without anything that could be part of a payload.

    Args:
        file: The SQLite file in which it happened, if it is known.
    """
    if isinstance(error, UnicodeEncodeError):
        if error.encoding == "utf-8":
            return "text with a lone surrogate cannot be encoded as UTF-8"
        return f"text is sent as {error.encoding}, which lacks some characters: set client_encoding to utf8"
    if isinstance(error, UnicodeDecodeError):
        return _DAMAGED
    if isinstance(error, sqlite3.Error):
        # Errors of SQLite have a code, errors of Python's module do not.
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return "a value in it is not valid text"
        return explain_failed_lock(error, file) or _SQLITE_ADVICE.get(code & 0xFF) or str(error)
    if isinstance(error, PoolTimeout):
        return (
            "all its connections are in use: close some, pass an open transaction as connection=…, or raise "
            "database.pool_size"
        )
    if isinstance(error, PendingRollbackError):
        return "its connection was lost during a transaction: roll the transaction back, and begin it again"
    if isinstance(error, OSError):
        return f"{error.strerror}: name a file in a folder that this user may write to"
    if getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE:
        return _LOCKED
    if str(getattr(error, "sqlstate", None)).startswith(DAMAGED_SQLSTATES):
        return _DAMAGED
    diagnosis = getattr(error, "diag", None)
    if getattr(diagnosis, "table_name", None) == "events" and getattr(error, "sqlstate", None) == "23505":
        return (
            "another transaction has appended since this one first read: repeat the transaction, or begin it with the "
            "isolation level READ COMMITTED"
        )
    message = getattr(diagnosis, "message_primary", None) or str(error).partition("\n")[0]
    state = getattr(error, "sqlstate", None)
    if state in (INSUFFICIENT_PRIVILEGE, INVALID_SCHEMA_NAME):
        return f"{message}: {advice(state, message)}"
    return message or type(error).__name__


def _is_at_fault(error: BaseException) -> bool:
    # Class 42 of SQLSTATE is a syntax error or access rule violation.
    state = str(getattr(error, "sqlstate", None))
    in_postgresql = state.startswith("42") and state != INSUFFICIENT_PRIVILEGE
    return in_postgresql or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
