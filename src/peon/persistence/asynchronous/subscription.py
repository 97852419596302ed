"""`Subscription` for an event loop."""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from peon.persistence.asynchronous.greenlets import Calls, Portion, next_portion
from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.subscriptions import Notifier, SavedPosition, StopEvent, Tail
from peon.persistence.subscriptions.subscription import STOP_POLL_SECONDS, require_stop_event
from peon.persistence.subscriptions.watcher import Watcher


class AsyncSubscription(Generic[StoredT]):
    """A subscription that is iterated by `async for`. See `Subscription`; `stop` may also be an `asyncio.Event`."""

    def __init__(
        self, engine: Engine, notifier: Notifier, tail: Tail[StoredT], stop: StopEvent | None, calls: Calls
    ) -> None:
        require_stop_event(stop)
        self._engine = engine
        self._notifier = notifier
        self._tail = tail
        self._stop = stop
        self._calls = calls
        self._closed = False
        self._news = asyncio.Event()
        self._consumer: asyncio.Task[Any] | None = None
        self._number: int | None = None
        self._leave: Callable[[], Watcher | None] | None = None
        self._events: deque[StoredEvent[StoredT]] = deque()
        self._reading: asyncio.Task[Portion[StoredT]] | None = None
        self.position = tail.position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredEvent[StoredT]:
        """Returns the next event.

        Raises:
            EventDecodeError: It cannot be decoded.
            StoreUnavailable: The database cannot be read.
            RuntimeError: Another task waits for the next event.
        """
        if self._consumer is not None:
            raise RuntimeError("another task waits for the next event: a subscription is for one, so have two")
        self._consumer = asyncio.current_task()
        try:
            return await self._next()
        finally:
            self._consumer = None

    async def _next(self) -> StoredEvent[StoredT]:
        while not self._is_over():
            if self._events:
                stored = self._events.popleft()
                self.position = stored.sequence
                return stored
            self._news.clear()
            if await self._read() or self._is_over():
                continue
            if not self._notifier.is_listening(self._number):
                self._listen()  # then read again, for what was stored before that
                continue
            await self._wait()
        await self.close()
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the subscription."""
        self._closed = True
        self._news.set()
        watcher = self._leave() if self._leave is not None else None
        if watcher is not None:
            await watcher.ended()

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
        return begun_before or bool(portion.events)

    def _listen(self) -> None:
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, self._news.set)
        self._number = self._notifier.listen(self._engine, wake)
        # Also leaves when the subscription is garbage-collected without `close`.
        self._leave = weakref.finalize(self, self._notifier.leave, self._number)

    async def _wait(self) -> None:
        while not self._news.is_set() and not self._is_over():
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._stop is None else STOP_POLL_SECONDS):
                    await self._news.wait()


class AsyncDurableSubscription(AsyncSubscription[StoredT]):
    """A subscription that resumes from the saved position of its name. See `DurableSubscription`."""

    def __init__(
        self,
        engine: Engine,
        notifier: Notifier,
        tail: Tail[StoredT],
        stop: StopEvent | None,
        calls: Calls,
        read_saved: Callable[[], SavedPosition],
    ) -> None:
        super().__init__(engine, notifier, tail, stop, calls)
        self._read_saved = read_saved
        self._saved: SavedPosition | None = None

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __anext__(self) -> StoredEvent[StoredT]:
        if not self._is_over():
            await self._begin()
        return await super().__anext__()

    async def _begin(self) -> SavedPosition:
        if self._saved is None:
            self._saved = await self._calls.run(self._read_saved)
            self._tail.move(self._saved.sequence)
            self.position = self._saved.sequence
        return self._saved

    async def save_position(self, *, connection: AsyncConnection | None = None) -> None:
        """See `DurableSubscription.save_position`."""
        saved = await self._begin()
        await self._calls.run_on(connection, lambda own: saved.save(self.position, own))
