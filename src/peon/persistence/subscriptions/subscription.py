"""Subscriptions: iterators that wait for the next event."""

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, runtime_checkable
from weakref import WeakSet

from sqlalchemy import Connection, Engine

from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.subscriptions.notifier import Arrivals
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.tail import Tail
from peon.persistence.subscriptions.watcher import PATIENCE, Watcher

_subscriptions: WeakSet["Subscription[Any]"] = WeakSet()

END_POLL = 0.05
"""Seconds between two looks at an end event, which cannot wake a subscription itself."""


@runtime_checkable
class EndEvent(Protocol):
    """A `threading.Event`, or one of multiprocessing."""

    def is_set(self) -> bool: ...


def require_end(end: object) -> None:
    if end is not None and not isinstance(end, EndEvent):
        raise TypeError(f"end is an event that is set, as a threading.Event, not {type(end).__name__}")


class Subscription(Generic[StoredT]):
    """Yields what is stored, then what comes, in order, each event once; waits where there is none.

    Between events no transaction is open and no connection is held, so a slow consumer holds up nobody. It ends when
    it is closed, by another thread perhaps, or as a context manager; when its end event is set; when the database
    is closed. After an error it may be asked again, and goes on where it was.

    It is for one consumer: two threads that are to see every event have a subscription each.
    """

    def __init__(self, engine: Engine, arrivals: Arrivals, tail: Tail[StoredT], end: EndEvent | None) -> None:
        require_end(end)
        self._engine = engine
        self._arrivals = arrivals
        self._tail = tail
        self._end = end
        self._closed = False
        self._news = threading.Event()
        self._lock = threading.RLock()
        self._number: int | None = None
        self._leave: Callable[[], Watcher | None] | None = None
        _subscriptions.add(self)

    def _start_anew(self) -> None:
        """Forgets a thread that reads: in a forked child it is not there."""
        self._news = threading.Event()
        self._lock = threading.RLock()
        self._tail.move(self._tail.position)

    @property
    def position(self) -> int:
        """The sequence of the last event that was yielded."""
        return self._tail.position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StoredEvent[StoredT]:
        """Returns the next event.

        Raises:
            EventDecodeError: It cannot be decoded.
            StoreUnavailable: The database cannot be read.
        """
        while not self._is_over():
            self._news.clear()
            with self._lock:
                if self._closed:
                    break
                stored = self._tail.next()
                if stored is not None:
                    return stored
                if not self._arrivals.is_listening(self._number):
                    self._listen()
                    continue  # and look again, for what was stored before that
            while not self._news.wait(END_POLL if self._end is not None else None) and not self._is_over():
                pass
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the subscription, from any thread; waits a moment for a read that is going on."""
        self._closed = True
        self._news.set()
        if self._lock.acquire(timeout=PATIENCE):  # otherwise who reads leaves, at its end
            self._lock.release()
            watcher = self._leave() if self._leave is not None else None
            if watcher is not None:
                watcher.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _is_over(self) -> bool:
        return self._closed or (self._end is not None and self._end.is_set())

    def _listen(self) -> None:
        self._number = self._arrivals.listen(self._engine, self._news.set)
        # One that nobody uses any more leaves, too.
        self._leave = weakref.finalize(self, self._arrivals.leave, self._number)


class NamedSubscription(Subscription[StoredT]):
    """A subscription that begins where the last one of its name had come to."""

    def __init__(
        self, engine: Engine, arrivals: Arrivals, tail: Tail[StoredT], end: EndEvent | None, saved: SavedPosition
    ) -> None:
        super().__init__(engine, arrivals, tail, end)
        self._saved = saved

    def commit(self, *, connection: Connection | None = None) -> None:
        """Saves the sequence of the last event that was yielded as the position of this name.

        Args:
            connection: Saves it in the transaction that this connection is in, or begins: then the effects that are
                in the same transaction, and the position, become durable together or not at all. Without it, in a
                transaction of its own.

        Raises:
            SubscriptionConflict: The position is not where this subscription left it: another consumer of the name
                was faster, or the transaction of an earlier event was undone. The transaction must be undone, and the
                subscription begun anew.
            StoreUnavailable: The database is locked, read-only, full, damaged.
        """
        self._saved.save(self.position, connection)


def _start_anew() -> None:
    for subscription in _subscriptions:
        subscription._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
