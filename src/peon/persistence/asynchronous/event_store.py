"""The log, for the tasks of an event loop."""

from collections.abc import AsyncIterator, Collection, Iterable
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload
from uuid import UUID
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from peon.orchestration import OrchestrationEvent
from peon.persistence.asynchronous.chunks import chunk_of
from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.asynchronous.subscription import AsyncNamedSubscription, AsyncSubscription
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.event_store import EventStore
from peon.persistence.log.append import AppendHook
from peon.persistence.log.codec import EventCodec, EventT, UndecodableEvent, orchestration_codec
from peon.persistence.log.query import AppendCondition, EventQuery
from peon.persistence.log.reader import LogReader, Selection, Undecodable, number
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.runtime.garbage_collection import garbage_collection_paused
from peon.persistence.subscriptions import EndEvent, SavedPosition, arrivals_of

SubscriptionT = TypeVar("SubscriptionT", bound=AsyncSubscription[Any])


class AsyncEventStore(Generic[EventT]):
    """As `EventStore`, for any number of tasks of one event loop.

    A task that is cancelled while it waits for an append does not undo it: it takes place as a whole, or not at all.

    Args:
        engine: Best of `create_async_engine`.
        codec: As of `EventStore`.
        on_append: As of `EventStore`; it gets the connection that the code of threads would get.
        calls: Those of the database that this store belongs to, if any.
    """

    @overload
    def __init__(
        self: "AsyncEventStore[OrchestrationEvent]",
        engine: AsyncEngine,
        *,
        on_append: AppendHook | None = None,
        calls: Calls | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: AsyncEngine,
        codec: EventCodec[EventT],
        *,
        on_append: AppendHook | None = None,
        calls: Calls | None = None,
    ) -> None: ...
    def __init__(
        self,
        engine: AsyncEngine,
        codec: EventCodec[Any] = orchestration_codec,
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
        self._reader = LogReader(self._engine, codec, self._driver_errors)
        self._arrivals = arrivals_of(self._engine)
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

    @overload
    async def replay_all(self, *, undecodable: Literal["raise"] = "raise") -> list[StoredEvent[EventT]]: ...
    @overload
    async def replay_all(self, *, undecodable: Undecodable) -> list[StoredEvent[EventT | UndecodableEvent]]: ...
    async def replay_all(self, *, undecodable: Undecodable = "raise") -> list[Any]:
        """See `EventStore.replay_all`."""
        return await self.replay_from(0, undecodable=undecodable)

    @overload
    async def replay_from(
        self, sequence: int, *, undecodable: Literal["raise"] = "raise"
    ) -> list[StoredEvent[EventT]]: ...
    @overload
    async def replay_from(
        self, sequence: int, *, undecodable: Undecodable
    ) -> list[StoredEvent[EventT | UndecodableEvent]]: ...
    async def replay_from(self, sequence: int, *, undecodable: Undecodable = "raise") -> list[Any]:
        """See `EventStore.replay_from`."""
        after = max(number("sequence", sequence) - 1, 0)
        with garbage_collection_paused():  # it would hold up the event loop, too
            return [stored async for stored in self.stream(after=after, undecodable=undecodable)]

    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Literal["raise"] = "raise",
    ) -> AsyncIterator[StoredEvent[EventT]]: ...
    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable,
    ) -> AsyncIterator[StoredEvent[EventT | UndecodableEvent]]: ...
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
    ) -> AsyncIterator[StoredEvent[Any]]:
        """See `EventStore.stream`."""
        events = self._reader.stream(after, limit, Selection(event_types, query, undecodable))
        return self._in_chunks(partial(next, events, None))

    async def _in_chunks(self, following: Any) -> AsyncIterator[StoredEvent[Any]]:
        while True:
            events, error = await self._calls.run(chunk_of, following)
            for stored in events:
                yield stored
            if error is not None:
                raise error
            if not events:
                return

    @overload
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Literal["raise"] = "raise",
        end: EndEvent | None = None,
    ) -> AsyncSubscription[EventT]: ...
    @overload
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable,
        end: EndEvent | None = None,
    ) -> AsyncSubscription[EventT | UndecodableEvent]: ...
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
        end: EndEvent | None = None,
    ) -> AsyncSubscription[Any]:
        """See `EventStore.subscribe`; `end` may be an `asyncio.Event` too."""
        tail = self._reader.tail(after, Selection(event_types, query, undecodable))
        return self._subscribed(AsyncSubscription(self._engine, self._arrivals, tail, end, self._calls))

    @overload
    def subscription(
        self,
        name: str,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Literal["raise"] = "raise",
        end: EndEvent | None = None,
    ) -> AsyncNamedSubscription[EventT]: ...
    @overload
    def subscription(
        self,
        name: str,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable,
        end: EndEvent | None = None,
    ) -> AsyncNamedSubscription[EventT | UndecodableEvent]: ...
    def subscription(
        self,
        name: str,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
        end: EndEvent | None = None,
    ) -> AsyncNamedSubscription[Any]:
        """See `EventStore.subscription`; the saved position is read by `async with`, or with the first event."""
        tail = self._reader.tail(after, Selection(event_types, query, undecodable))
        saved = partial(SavedPosition, self._engine, self._driver_errors, name, tail.position)
        return self._subscribed(AsyncNamedSubscription(self._engine, self._arrivals, tail, end, self._calls, saved))

    def _subscribed(self, subscription: SubscriptionT) -> SubscriptionT:
        self._subscriptions.add(subscription)
        return subscription

    async def last_sequence(self) -> int:
        """See `EventStore.last_sequence`."""
        return await self._calls.run(self._reader.last_sequence)

    async def close(self) -> None:
        """See `EventStore.close`; waits for the appends whose callers were cancelled."""
        for subscription in [*self._subscriptions]:
            await subscription.close()
        await self._calls.finish()
        await self._calls.run(self._store.close)
