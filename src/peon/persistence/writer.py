"""The one transaction at a time in which a store writes."""

import os
from threading import Lock, get_ident
from types import TracebackType
from weakref import WeakSet

from sqlalchemy import Connection, Engine

from peon.persistence.engine import begin_writing, is_memory
from peon.persistence.errors import PersistenceError

_writers: WeakSet["Writer"] = WeakSet()
_inherited: list[object] = []


class Writer:
    """`with writer as connection:` is `with engine.begin() as connection:` for one thread at a time.

    Threads wait for one another here, as SQLite's own waiting is polling, and unfair.

    On an SQLite file the connection is kept from one transaction to the next: to take it from the pool and to
    give it back costs a fifth of an append of one event, fsync included (see docs/decisions.md). After any error
    it is given back, and the next transaction takes another. A database in memory has only this connection,
    and readers need it too; a connection to a server may have died meanwhile, which the pool finds out.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keep = engine.dialect.name == "sqlite" and not is_memory(engine.url)
        self._lock = Lock()
        self._owner: int | None = None
        self._connection: Connection | None = None
        _writers.add(self)

    def __enter__(self) -> Connection:
        thread = get_ident()
        if self._owner == thread:
            # A logging handler that stores what the engine logs comes back here, and would wait for itself.
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by a logging handler perhaps: "
                "call it later, or from another thread"
            )
        self._lock.acquire()
        self._owner = thread
        try:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._engine.connect()
            begin_writing(connection)
        except BaseException:
            self._end()
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        keep = False
        try:
            if kind is None and self._connection is not None:
                self._connection.commit()
                keep = self._keep
        finally:
            self._end(keep=keep)

    def close(self) -> None:
        """Gives the connection back to the pool; the next transaction takes one again."""
        with self._lock:
            self._give_back()

    def _end(self, *, keep: bool = False) -> None:
        try:
            if not keep:
                self._give_back()
        finally:
            self._owner = None
            self._lock.release()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            # SQLAlchemy takes a transaction whose commit failed to be over; SQLite may have it open still.
            self._engine.dialect.do_rollback(connection.connection)
        except Exception:
            connection.invalidate()
        finally:
            connection.close()


def _start_anew() -> None:
    """In a forked child: the lock may be held by a thread that is not there, and the connection is the parent's."""
    for writer in _writers:
        _inherited.append(writer._connection)
        writer._connection = None
        writer._owner = None
        writer._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
