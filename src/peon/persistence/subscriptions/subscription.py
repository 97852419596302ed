"""Subscriptions: iterators that wait for the next event."""

import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Protocol, Self, runtime_checkable

from sqlalchemy import Connection, Engine

from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.runtime.forking import reset_after_fork
from peon.persistence.subscriptions.notifier import Notifier
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.tail import Tail
from peon.persistence.subscriptions.watcher import END_TIMEOUT_SECONDS, Watcher

STOP_POLL_SECONDS = 0.05
"""Between two looks at a stop event, which cannot wake a subscription itself."""


@runtime_checkable
class StopEvent(Protocol):
    """A `threading.Event`, or one of `multiprocessing`."""

    def is_set(self) -> bool: ...


def require_stop_event(stop: object) -> None:
    if stop is not None and not isinstance(stop, StopEvent):
        raise TypeError(f"stop is an event that is set, as a threading.Event, not {type(stop).__name__}")


class Subscription(Generic[StoredT]):
    """Yields stored events, then new ones as they are stored: in order, without a gap, each once.

    Between events no transaction is open and no connection is held, so a slow consumer blocks no other work. The
    iteration ends when the subscription is closed (by `close` from any thread, or as a context manager), when its
    stop event is set, and when the database is closed. After an error it can be iterated again, and resumes where
    it was.

    A subscription has one consumer: two threads that need every event have a subscription each.
    """

    def __init__(self, engine: Engine, notifier: Notifier, tail: Tail[StoredT], stop: StopEvent | None) -> None:
        require_stop_event(stop)
        self._engine = engine
        self._notifier = notifier
        self._tail = tail
        self._stop = stop
        self._closed = False
        self._news = threading.Event()
        self._lock = threading.RLock()
        self._number: int | None = None
        self._leave: Callable[[], Watcher | None] | None = None
        reset_after_fork(self, Subscription._reset_in_child)

    def _reset_in_child(self) -> None:
        """A thread of the parent process may have been reading."""
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
        """Returns the next event; waits if there is none yet.

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
                if not self._notifier.is_listening(self._number):
                    self._listen()
                    continue  # read again, for what was stored before `_listen`
            while not self._news.wait(STOP_POLL_SECONDS if self._stop is not None else None) and not self._is_over():
                pass
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the subscription, from any thread; waits a moment for a read that is under way."""
        self._closed = True
        self._news.set()
        if self._lock.acquire(timeout=END_TIMEOUT_SECONDS):  # otherwise the reading thread leaves when it ends
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
        return self._closed or (self._stop is not None and self._stop.is_set())

    def _listen(self) -> None:
        self._number = self._notifier.listen(self._engine, self._news.set)
        # Also leaves when the subscription is garbage-collected without `close`.
        self._leave = weakref.finalize(self, self._notifier.leave, self._number)


class DurableSubscription(Subscription[StoredT]):
    """A subscription that resumes from the saved position of its name."""

    def __init__(
        self, engine: Engine, notifier: Notifier, tail: Tail[StoredT], stop: StopEvent | None, saved: SavedPosition
    ) -> None:
        super().__init__(engine, notifier, tail, stop)
        self._saved = saved

    def save_position(self, *, connection: Connection | None = None) -> None:
        """Saves the sequence of the last event that was yielded as the position of this name.

        Args:
            connection: Saves it in the transaction that this connection is in, or begins one; its owner commits.
                The consumer's effects in the same transaction and the position then become durable together or not
                at all. Without a connection, the position is saved in a transaction of its own.

        Raises:
            SubscriptionConflict: The position is not where this subscription left it: another consumer of the name
                moved it, or the transaction of an earlier event was rolled back. Roll back, and start the
                subscription again.
            StoreUnavailable: The database is locked, read-only, full or damaged.
            ValueError: The connection is to another database, or its isolation level is AUTOCOMMIT.
        """
        self._saved.save(self.position, connection)
