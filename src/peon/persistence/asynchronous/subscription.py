"""`Subscription` for an event loop."""

import asyncio
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self

from sqlalchemy import Engine

from peon.persistence.asynchronous.greenlets import Calls, Portion, next_portion
from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.subscriptions.notifier import Notifier
from peon.persistence.subscriptions.subscription import (
    ACTIVE_POLL_SECONDS,
    BATCH_EVENTS,
    StopEvent,
    require_batch,
    require_callback,
    require_stop_event,
    seconds_to_wait,
)
from peon.persistence.subscriptions.tail import Tail
from peon.persistence.subscriptions.watcher import Watcher


class AsyncSubscription(Generic[StoredT]):
    """A subscription that is iterated by `async for`. See `Subscription`; `stop` may also be an `asyncio.Event`."""

    def __init__(
        self,
        engine: Engine,
        notifier: Notifier,
        tail: Tail[StoredT],
        stop: StopEvent | None,
        on_caught_up: Callable[[], object] | None,
        calls: Calls,
    ) -> None:
        require_stop_event(stop)
        require_callback(on_caught_up)
        self._engine = engine
        self._notifier = notifier
        self._tail = tail
        self._stop = stop
        self._on_caught_up = on_caught_up
        self._calls = calls
        self._is_behind = True
        self._closed = False
        self._news = asyncio.Event()
        self._consumer: asyncio.Task[Any] | None = None
        self._number: int | None = None
        self._leave: Callable[[], Watcher | None] | None = None
        self._events: deque[StoredEvent[StoredT]] = deque()
        self._reading: asyncio.Task[Portion[StoredT]] | None = None
        self._yielded = tail.position
        self.position = tail.position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredEvent[StoredT]:
        """Returns the next event.

        Raises:
            EventDecodeError: It cannot be decoded.
            PositionBeyondEnd: The log ends before the position of the subscription.
            StoreUnavailable: The database cannot be read.
            RuntimeError: Another task waits for the next event.
        """
        stored = await self._next(None)
        if stored is None:
            raise StopAsyncIteration
        return stored

    def batches(
        self, max_events: int = BATCH_EVENTS, *, timeout: float | None = None
    ) -> AsyncIterator[list[StoredEvent[StoredT]]]:
        """See `Subscription.batches`."""
        require_batch(max_events, timeout)
        return self._batches(max_events, timeout)

    async def _batches(self, max_events: int, timeout: float | None) -> AsyncIterator[list[StoredEvent[StoredT]]]:
        while not self._is_over():
            first = await self._next(None if timeout is None else time.monotonic() + timeout)
            if first is not None:
                batch = [first]
                while self._events and len(batch) < max_events:
                    batch.append(self._take())
                yield batch
            elif not self._is_over():
                yield []
        await self.close()

    async def _next(self, deadline: float | None) -> StoredEvent[StoredT] | None:
        """Returns the next event, `None` at the deadline and when the subscription has ended."""
        if self._consumer is not None:
            raise RuntimeError("another task waits for the next event: a subscription is for one, so have two")
        self._consumer = asyncio.current_task()
        try:
            return await self._read_or_wait(deadline)
        finally:
            self._consumer = None

    async def _read_or_wait(self, deadline: float | None) -> StoredEvent[StoredT] | None:
        while not self._is_over():
            self._news.clear()
            is_active = await self._is_active()
            if is_active and not self._is_over():
                if self._events:
                    return self._take()
                if await self._read() or self._is_over():
                    continue
                if not self._notifier.is_listening(self._number):
                    self._listen()  # then read again, for what was stored before that
                    continue
                await self._has_caught_up()
            if not await self._wait(deadline, None if is_active else ACTIVE_POLL_SECONDS):
                return None
        await self.close()
        return None

    def _take(self) -> StoredEvent[StoredT]:
        stored = self._events.popleft()
        self._is_behind = True
        self._yielded = self.position = stored.sequence
        return stored

    async def _is_active(self) -> bool:
        """Returns whether this is the consumer that receives the events."""
        return True

    async def _has_caught_up(self) -> None:
        """Is called before each wait for a new event."""
        if self._is_behind and self._on_caught_up is not None:
            self._on_caught_up()
        self._is_behind = False

    async def close(self) -> None:
        """Ends the subscription."""
        self._closed = True
        self._news.set()
        self._release()
        watcher = self._leave() if self._leave is not None else None
        if watcher is not None:
            await watcher.ended()

    def _release(self) -> None:
        """Lets another consumer be the active one."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _is_over(self) -> bool:
        return self._closed or (self._stop is not None and self._stop.is_set())

    async def _read(self) -> bool:
        """Reads the next events; returns whether there may be more."""
        # A read whose caller was cancelled runs on, and the next caller takes its events. It began before the last
        # notification, so what it has not found may be stored by now.
        begun_before = self._reading is not None
        if self._reading is None:
            self._reading = self._calls.begin(next_portion, self._tail.next)
        try:
            portion = await asyncio.shield(self._reading)
        except asyncio.CancelledError:
            if not self._reading.cancelled():
                raise
            # The reading task itself was cancelled, as at the end of the event loop: read its events again.
            self._reading = None
            self._tail.move(self._events[-1].sequence if self._events else self.position)
            if self._consumer is not None and self._consumer.cancelling():
                raise
            return True
        self._reading = None
        self._events.extend(portion.events)
        if portion.error is not None and not portion.events:
            raise portion.error
        if not portion.events:
            self.position = self._tail.position
        return begun_before or bool(portion.events)

    def _listen(self) -> None:
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, self._news.set)
        self._number = self._notifier.listen(self._engine, wake)
        # Also leaves when the subscription is garbage-collected without `close`.
        self._leave = weakref.finalize(self, self._notifier.leave, self._number)

    async def _wait(self, deadline: float | None, poll_seconds: float | None) -> bool:
        """Waits for news, or for `poll_seconds`; returns `False` if the deadline has passed."""
        polled_at = None if poll_seconds is None else time.monotonic() + poll_seconds
        while not self._news.is_set() and not self._is_over():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if polled_at is not None and now >= polled_at:
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds_to_wait(now, deadline, polled_at, self._stop)):
                    await self._news.wait()
        return True
