"""Subscriptions: iterators that wait for the next event."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, runtime_checkable

from sqlalchemy import Engine

from peon.persistence.errors import PersistenceError
from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.runtime.forking import reset_after_fork
from peon.persistence.subscriptions.notifier import Notifier
from peon.persistence.subscriptions.tail import Tail
from peon.persistence.subscriptions.watcher import END_TIMEOUT_SECONDS, Watcher

STOP_POLL_SECONDS = 0.05
"""Between two looks at a stop event, which cannot wake a subscription itself."""

ACTIVE_POLL_SECONDS = 0.1
"""Between two looks of a waiting consumer whether it can take over from the active one of its name."""

BATCH_EVENTS = 100
"""Events in a batch, unless the caller wants another number."""


@runtime_checkable
class StopEvent(Protocol):
    """A `threading.Event`, or one of `multiprocessing`."""

    def is_set(self) -> bool: ...


def require_stop_event(stop: object) -> None:
    if stop is not None and not isinstance(stop, StopEvent):
        raise TypeError(f"stop is an event that is set, as a threading.Event, not {type(stop).__name__}")


def require_callback(on_caught_up: object) -> None:
    if on_caught_up is not None and not callable(on_caught_up):
        raise TypeError(f"on_caught_up is a function without arguments, not {type(on_caught_up).__name__}")


def require_batch(max_events: object, timeout: object) -> None:
    """Checks the arguments of `Subscription.batches`."""
    if type(max_events) is not int:
        raise TypeError(f"max_events is a number from 1 on, not {type(max_events).__name__}")
    if max_events < 1:
        raise ValueError(f"max_events is a number from 1 on, not {max_events}")
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"timeout is a number of seconds from 0 on, not {timeout}")


def seconds_to_wait(
    now: float, deadline: float | None, polled_at: float | None, stop: StopEvent | None
) -> float | None:
    """Returns the time until the first of two moments, or until the next look at `stop`; `None` if there is none."""
    pauses = [moment - now for moment in (deadline, polled_at) if moment is not None]
    if stop is not None:
        pauses.append(STOP_POLL_SECONDS)
    return min(pauses, default=None)


class Subscription(Generic[StoredT]):
    """Yields stored events, then new ones as they are stored: in order, without a gap, each once.

    Between events no transaction is open, so a slow consumer blocks no other work. The iteration ends when the
    subscription is closed (by `close` from any thread, or as a context manager), when its stop event is set, and when
    the database is closed. After an error it can be iterated again, and resumes where it was.

    A subscription has one consumer: two threads that need every event have a subscription each.
    """

    def __init__(
        self,
        engine: Engine,
        notifier: Notifier,
        tail: Tail[StoredT],
        stop: StopEvent | None,
        on_caught_up: Callable[[], object] | None,
    ) -> None:
        require_stop_event(stop)
        require_callback(on_caught_up)
        self._engine = engine
        self._notifier = notifier
        self._tail = tail
        self._stop = stop
        self._on_caught_up = on_caught_up
        self._is_behind = True
        self._yielded = tail.position
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
        """The sequence up to which the log was read. Every event up to there was yielded, or is not selected."""
        return self._tail.position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StoredEvent[StoredT]:
        """Returns the next event; waits if there is none yet.

        Raises:
            EventDecodeError: It cannot be decoded.
            PositionBeyondEnd: The log ends before the position of the subscription.
            StoreUnavailable: The database cannot be read.
        """
        stored = self._next(None)
        if stored is None:
            raise StopIteration
        return stored

    def batches(
        self, max_events: int = BATCH_EVENTS, *, timeout: float | None = None
    ) -> Iterator[list[StoredEvent[StoredT]]]:
        """Yields lists of events: what can be had at once after waiting for one event.

        A list may be shorter than `max_events` although more events are stored.

        Args:
            max_events: The maximum number of events in a list.
            timeout: Yield an empty list after this many seconds without an event. 0 does not wait at all. By default
                each list has an event.

        Raises:
            EventDecodeError: The first event of a list cannot be decoded. If a later one cannot, the list ends before
                it.
            StoreUnavailable: The database cannot be read.
            ValueError: `max_events` is below 1, or `timeout` below 0.
            TypeError: An argument is of the wrong type.
        """
        require_batch(max_events, timeout)
        return self._batches(max_events, timeout)

    def _batches(self, max_events: int, timeout: float | None) -> Iterator[list[StoredEvent[StoredT]]]:
        while not self._is_over():
            first = self._next(None if timeout is None else time.monotonic() + timeout)
            if first is not None:
                yield [first, *self._take_read(max_events - 1)]
            elif not self._is_over():
                yield []
        self.close()

    def _take_read(self, count: int) -> Iterator[StoredEvent[StoredT]]:
        """Yields events that were already read, up to one that cannot be decoded."""
        for _ in range(count):
            with self._lock:
                try:
                    stored = None if self._closed else self._tail.next_read()
                except PersistenceError:
                    return  # the next call raises it again
                if stored is None:
                    return
                self._yielded = stored.sequence
            yield stored

    def _next(self, deadline: float | None) -> StoredEvent[StoredT] | None:
        """Returns the next event, `None` at the deadline and when the subscription has ended."""
        while not self._is_over():
            self._news.clear()
            with self._lock:
                if self._closed:
                    break
                is_active = self._is_active()
                if is_active:
                    stored = self._tail.next()
                    if stored is not None:
                        self._is_behind = True
                        self._yielded = stored.sequence
                        return stored
                    if not self._notifier.is_listening(self._number):
                        self._listen()
                        continue  # read again, for what was stored before `_listen`
            if is_active:
                self._has_caught_up()
            if not self._wait(deadline, None if is_active else ACTIVE_POLL_SECONDS):
                return None
        self.close()
        return None

    def _is_active(self) -> bool:
        """Returns whether this is the consumer that receives the events."""
        return True

    def _has_caught_up(self) -> None:
        """Is called before each wait for a new event."""
        if self._is_behind and self._on_caught_up is not None:
            self._on_caught_up()
        self._is_behind = False

    def _wait(self, deadline: float | None, poll_seconds: float | None) -> bool:
        """Waits for news, or for `poll_seconds`; returns `False` if the deadline has passed."""
        polled_at = None if poll_seconds is None else time.monotonic() + poll_seconds
        while not self._is_over():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if polled_at is not None and now >= polled_at:
                return True
            if self._news.wait(seconds_to_wait(now, deadline, polled_at, self._stop)):
                return True
        return True

    def close(self) -> None:
        """Ends the subscription, from any thread; waits a moment for a read that is under way."""
        self._closed = True
        self._news.set()
        if self._lock.acquire(timeout=END_TIMEOUT_SECONDS):  # otherwise the reading thread leaves when it ends
            try:
                self._release()
            finally:
                self._lock.release()
            watcher = self._leave() if self._leave is not None else None
            if watcher is not None:
                watcher.wait()

    def _release(self) -> None:
        """Lets another consumer be the active one."""

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
