"""The driver's connections to SQLite, of which none is inside SQLite when another thread forks.

SQLite has locks that all connections of a process share. If a thread holds one of them at the moment of a fork, the
child waits for it without end as soon as it opens a database (measured in docs/explanation/decisions/interface.md).
"""

import sqlite3
import warnings
from collections.abc import Iterable
from contextlib import closing, suppress
from threading import RLock
from typing import Any

from peon.persistence.runtime.forking import gate

# Looked up once: `super()` takes as long as the lock.
_execute = sqlite3.Cursor.execute
_executemany = sqlite3.Cursor.executemany
_fetchone = sqlite3.Cursor.fetchone
_fetchmany = sqlite3.Cursor.fetchmany
_fetchall = sqlite3.Cursor.fetchall
_close = sqlite3.Cursor.close
_cursor_of = sqlite3.Connection.cursor
_execute_on = sqlite3.Connection.execute
_commit = sqlite3.Connection.commit
_rollback = sqlite3.Connection.rollback


class GatedCursor(sqlite3.Cursor):
    """A cursor that holds the `fork_lock` of its connection during each call of SQLite."""

    connection: "GatedConnection"

    def execute(self, sql: str, parameters: Any = (), /) -> "GatedCursor":
        with self.connection.fork_lock:
            return _execute(self, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> "GatedCursor":
        with self.connection.fork_lock:
            return _executemany(self, sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        with self.connection.fork_lock:
            return super().executescript(script)

    def fetchone(self) -> Any:
        with self.connection.fork_lock:
            return _fetchone(self)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        with self.connection.fork_lock:
            return _fetchmany(self, self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        with self.connection.fork_lock:
            return _fetchall(self)

    def __next__(self) -> Any:
        with self.connection.fork_lock:
            return super().__next__()

    def close(self) -> None:
        with self.connection.fork_lock:
            _close(self)


class GatedConnection(sqlite3.Connection):
    """A connection that holds its `fork_lock` during each call of SQLite. Give it to `sqlite3.connect` as factory.

    Not gated are the methods that neither SQLAlchemy nor Peon calls, and those that keep Python's global lock.
    """

    fork_lock: RLock

    def __init__(self, *arguments: Any, **options: Any) -> None:
        gate(self)
        with self.fork_lock:
            super().__init__(*arguments, **options)

    def cursor(self, factory: Any = GatedCursor) -> Any:
        return _cursor_of(self, factory)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        with self.fork_lock:  # some releases of Python call the method of the cursor, others do not
            return _execute_on(self, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        with self.fork_lock:
            return super().executemany(sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        with self.fork_lock:
            return super().executescript(script)

    def commit(self) -> None:
        with self.fork_lock:
            _commit(self)

    def rollback(self) -> None:
        with self.fork_lock:
            _rollback(self)

    def backup(self, target: sqlite3.Connection, **options: Any) -> None:
        with self.fork_lock:
            super().backup(target, **options)

    def close(self) -> None:
        with self.fork_lock:
            # SQLite keeps a closed connection and its locks until the last cursor ends. An interrupt leaves one that
            # only the garbage collector finds.
            try:
                with suppress(sqlite3.Error):  # what is closed, or damaged, can be closed all the same
                    _rollback(self)
            finally:
                super().close()

    def __del__(self) -> None:
        # Python would close it without the lock.
        with suppress(sqlite3.ProgrammingError):  # it is closed, was never opened, or belongs to another thread
            self.total_changes  # noqa: B018
            self._warn()
            self.close()

    def _warn(self) -> None:
        warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)


class EventLoopConnection(GatedConnection):
    """A connection that aiosqlite opens. It forgets one whose opening is cancelled, which is then closed here."""

    def _warn(self) -> None:
        pass


def first_row(connection: sqlite3.Connection, query: str) -> tuple[Any, ...]:
    """Returns the first row of a query that is run by the driver.

    SQLAlchemy 2.0's adapter for an event loop returns rows from its cursors only, not from what `execute` returns.
    """
    with closing(connection.cursor()) as cursor:
        cursor.execute(query)
        row: tuple[Any, ...] = cursor.fetchone()
        return row
