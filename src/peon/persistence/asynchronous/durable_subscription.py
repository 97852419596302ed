"""`DurableSubscription` for an event loop."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.asynchronous.subscription import AsyncSubscription
from peon.persistence.log.stored_event import StoredT
from peon.persistence.subscriptions.notifier import Notifier
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import StopEvent
from peon.persistence.subscriptions.tail import Tail


class AsyncDurableSubscription(AsyncSubscription[StoredT]):
    """A subscription that resumes from the saved position of its name. See `DurableSubscription`."""

    def __init__(
        self,
        engine: Engine,
        notifier: Notifier,
        tail: Tail[StoredT],
        stop: StopEvent | None,
        on_caught_up: Callable[[], object] | None,
        calls: Calls,
        read_saved: Callable[[], SavedPosition],
    ) -> None:
        super().__init__(engine, notifier, tail, stop, on_caught_up, calls)
        self._read_saved = read_saved
        self._saved: SavedPosition | None = None
        # A call whose caller was cancelled runs on. The next one must wait for it, as both use the saved position.
        self._call: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def _begin(self) -> SavedPosition:
        if self._saved is None:
            self._saved = await self._calls.run(self._read_saved)
            self._move(self._saved.sequence)
        return self._saved

    async def _is_active(self) -> bool:
        saved = await self._begin()
        if saved.consumer_lock.is_held:
            return True
        if self._reading is not None:  # one whose caller was cancelled: it must not move the tail back
            await asyncio.wait([self._reading])
        await self._call_ended()
        self._call = self._calls.begin(self._activate, saved)
        is_active: bool = await asyncio.shield(self._call)
        return is_active

    def _activate(self, saved: SavedPosition) -> bool:
        is_active = saved.activate(self._yielded, self._move)
        if self._closed:
            saved.consumer_lock.release()
        return is_active and not self._closed

    def _move(self, sequence: int) -> None:
        self._events.clear()
        self._reading = None
        self._tail.move(sequence)
        self._yielded = self.position = sequence

    async def _has_caught_up(self) -> None:
        saved = await self._begin()
        if saved.has_passed_over(self._yielded, self.position):
            await self._call_ended()
            self._call = self._calls.begin(saved.pass_over, self._yielded, self.position)
            await asyncio.shield(self._call)
        await super()._has_caught_up()

    async def _call_ended(self) -> None:
        if self._call is not None and not self._call.done():
            await asyncio.wait([self._call])

    def _release(self) -> None:
        # While it is being acquired, its connection is in use: `_activate` releases it then.
        if self._saved is not None and (self._call is None or self._call.done()):
            self._saved.consumer_lock.release()

    async def save_position(self, *, connection: AsyncConnection | None = None) -> None:
        """See `DurableSubscription.save_position`."""
        saved = await self._begin()
        await self._call_ended()
        await self._calls.run_on(connection, lambda own: saved.save(self.position, own))
