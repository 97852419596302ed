"""`EventStore` for an event loop."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import UUID
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from peon.persistence.asynchronous.durable_subscription import AsyncDurableSubscription
from peon.persistence.asynchronous.greenlets import Calls, next_portion
from peon.persistence.asynchronous.subscription import AsyncSubscription
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.event_store import EventStore, EventT, KeptT
from peon.persistence.log.append import AppendHook
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.query import AppendCondition, EventQuery
from peon.persistence.log.reader import LogReader, Selection, checked_number
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.orchestration.codec import codec_of_store
from peon.persistence.runtime.telemetry import telemetry_of
from peon.persistence.subscriptions.notifier import notifier_of
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import StopEvent
from peon.persistence.subscriptions.tail import Tail

SubscriptionT = TypeVar("SubscriptionT", bound=AsyncSubscription[Any])


class AsyncEventStore(Generic[EventT]):
    """The append-only log, for any number of tasks of one event loop. See `EventStore`.

    Cancelling a task that waits for an append does not undo the append, which takes place as a whole or not at all.

    Args:
        engine: One of `create_async_engine`.
        codec: See `EventStore`.
        on_append: See `EventStore`. It gets a blocking connection, as in a thread.
        calls: The calls of the database that this store belongs to, if any.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        codec: EventCodec[EventT] | None = None,
        *,
        on_append: AppendHook | None = None,
        calls: Calls | None = None,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise TypeError(f"AsyncEventStore takes an AsyncEngine, not {type(engine).__name__}")
        self._engine = engine.sync_engine
        self._calls = calls or Calls()
        self._store: EventStore[EventT] = EventStore(self._engine, codec, on_append=on_append)
        self._driver_errors = DriverErrors(self._engine)
        self._reader = LogReader(self._engine, codec_of_store(codec), self._driver_errors)
        self._notifier = notifier_of(self._engine)
        self._telemetry = telemetry_of(self._engine)
        self._subscriptions: WeakSet[AsyncSubscription[Any]] = WeakSet()

    def __repr__(self) -> str:
        return f"<AsyncEventStore of {database_name(self._engine)}>"

    async def append_all(
        self,
        events: Iterable[EventT],
        *,
        condition: AppendCondition | None = None,
        command_id: UUID | str | None = None,
        connection: AsyncConnection | None = None,
    ) -> list[StoredEvent[EventT]]:
        """See `EventStore.append_all`."""
        return await self._calls.run_on(
            connection,
            lambda own: self._store.append_all(events, condition=condition, command_id=command_id, connection=own),
        )

    async def replay_all(self, *, undecodable: type[KeptT] | None = None) -> list[StoredEvent[EventT | KeptT]]:
        """See `EventStore.replay_all`."""
        return await self.replay_from(0, undecodable=undecodable)

    async def replay_from(
        self, sequence: int, *, undecodable: type[KeptT] | None = None
    ) -> list[StoredEvent[EventT | KeptT]]:
        """See `EventStore.replay_from`."""
        after = max(checked_number("sequence", sequence) - 1, 0)
        with self._telemetry.operation("replay") as operation:
            events = [stored async for stored in self.stream(after=after, undecodable=undecodable)]
            operation.handled(len(events))
        return events

    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        newest_first: bool = False,
        before: int | None = None,
        undecodable: type[KeptT] | None = None,
    ) -> AsyncIterator[StoredEvent[EventT | KeptT]]:
        """See `EventStore.stream`."""
        selection = Selection(event_types, query, undecodable)
        events = self._reader.stream(after, limit, selection, newest_first, before)
        return self._in_portions(partial(next, events, None))

    async def _in_portions(self, following: Callable[[], StoredEvent[Any] | None]) -> AsyncIterator[StoredEvent[Any]]:
        while True:
            events, error = await self._calls.run(next_portion, following)
            for stored in events:
                yield stored
            if error is not None:
                raise error
            if not events:
                return

    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: type[KeptT] | None = None,
        stop: StopEvent | None = None,
        on_caught_up: Callable[[], object] | None = None,
    ) -> AsyncSubscription[EventT | KeptT]:
        """See `EventStore.subscribe`; `stop` may also be an `asyncio.Event`."""
        tail: Tail[EventT | KeptT] = Tail.of(self._reader, after, Selection(event_types, query, undecodable))
        return self._registered(AsyncSubscription(self._engine, self._notifier, tail, stop, on_caught_up, self._calls))

    def durable_subscription(
        self,
        name: str,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: type[KeptT] | None = None,
        stop: StopEvent | None = None,
        on_caught_up: Callable[[], object] | None = None,
    ) -> AsyncDurableSubscription[EventT | KeptT]:
        """See `EventStore.durable_subscription`; `async with`, or the first event, reads the saved position."""
        tail: Tail[EventT | KeptT] = Tail.of(self._reader, after, Selection(event_types, query, undecodable))
        tail.name = name
        read_saved = partial(SavedPosition, self._engine, self._driver_errors, name, tail.position)
        return self._registered(
            AsyncDurableSubscription(self._engine, self._notifier, tail, stop, on_caught_up, self._calls, read_saved)
        )

    def _registered(self, subscription: SubscriptionT) -> SubscriptionT:
        self._subscriptions.add(subscription)
        return subscription

    async def last_sequence(self) -> int:
        """See `EventStore.last_sequence`."""
        return await self._calls.run(self._reader.last_sequence)

    async def log_id(self) -> UUID:
        """See `EventStore.log_id`."""
        return await self._calls.run(self._reader.identity)

    async def renew_log_id(self) -> UUID:
        """See `EventStore.renew_log_id`."""
        return await self._calls.run(self._reader.renew_identity)

    async def close(self) -> None:
        """See `EventStore.close`; also waits for appends whose callers were cancelled."""
        for subscription in [*self._subscriptions]:
            await subscription.close()
        await self._calls.finish()
        await self._calls.run(self._store.close)
