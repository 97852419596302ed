"""The log: events in, in one transaction a batch; events out, in order, every one of them."""

from collections.abc import Collection, Iterable, Iterator
from threading import RLock
from typing import Any, Generic, Literal, TypeVar, overload
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import Connection, Engine

from peon.orchestration import OrchestrationEvent
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.same_database import require_connection
from peon.persistence.group_commit import Writer, writer_for
from peon.persistence.log.append import Appender, AppendHook, AppendRequest
from peon.persistence.log.codec import EventCodec, EventT, UndecodableEvent, orchestration_codec
from peon.persistence.log.query import AppendCondition, EventQuery
from peon.persistence.log.reader import LogReader, Selection, Undecodable, number
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.log.tag_index import TakesLong
from peon.persistence.runtime.garbage_collection import garbage_collection_paused
from peon.persistence.subscriptions import EndEvent, NamedSubscription, SavedPosition, Subscription, arrivals_of

SubscriptionT = TypeVar("SubscriptionT", bound=Subscription[Any])


class EventStore(Generic[EventT]):
    """The append-only log of events in a migrated database. One store serves any number of threads.

    Args:
        engine: Best of `create_engine`; any other of SQLite or PostgreSQL works, with its own durability.
        codec: For which events; the domain's own by default.
        on_append: Called in the transaction of each append, after the events were stored in it. What it raises
            fails the append.
    """

    @overload
    def __init__(
        self: "EventStore[OrchestrationEvent]", engine: Engine, *, on_append: AppendHook | None = None
    ) -> None: ...
    @overload
    def __init__(self, engine: Engine, codec: EventCodec[EventT], *, on_append: AppendHook | None = None) -> None: ...
    def __init__(
        self, engine: Engine, codec: EventCodec[Any] = orchestration_codec, *, on_append: AppendHook | None = None
    ) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"EventStore takes an Engine, not {type(engine).__name__}; AsyncEventStore an AsyncEngine")
        self._engine = engine
        self._driver_errors = DriverErrors(
            engine, hint=". Has the database been migrated? alembic upgrade head does that"
        )
        self._reader = LogReader(engine, codec, self._driver_errors)
        self._appender = Appender(engine, codec, on_append, self._driver_errors)
        self._arrivals = arrivals_of(engine)
        self._subscribing = RLock()
        self._subscriptions: WeakSet[Subscription[Any]] = WeakSet()
        self._writer: Writer[AppendRequest[EventT], list[StoredEvent[EventT]]] = writer_for(engine, self._driver_errors)

    def __repr__(self) -> str:
        return f"<EventStore of {database_name(self._engine)}>"

    def append_all(
        self,
        events: Iterable[EventT],
        *,
        condition: AppendCondition | None = None,
        command_id: UUID | str | None = None,
        connection: Connection | None = None,
    ) -> list[StoredEvent[EventT]]:
        """Stores a batch of events in one transaction: all of them, or none.

        Args:
            events: In the order in which they are to be stored; none at all is allowed.
            condition: Stores them only if no event that matches its query has a sequence above its `after`.
            command_id: A UUID, or its text. Stores them once: a repeat returns what was stored then.
            connection: Stores them in the transaction that this connection is in, or begins; its owner commits
                or rolls back. An append that fails leaves no trace in it.

        Returns:
            The events with their sequences: contiguous, and above all that were stored before. On return they
            are durable, unless `connection` was given.

        Raises:
            EventEncodeError: One of them would not come back as it is. Nothing was stored.
            EventDecodeError: One that a repeated command has stored cannot be read. Nothing was stored.
            ConcurrencyError: The condition does not hold. Nothing was stored.
            CommandConflict: The command has stored other events. Nothing was stored.
            ProjectionError: One of them contradicts what the projections hold, where the store has any. Nothing
                was stored.
            StoreUnavailable: The database is locked, read-only, full, damaged. Nothing was stored.
            TypeError: `events` is a single event; the condition is no `AppendCondition`; `connection` none of
                SQLAlchemy's.
            ValueError: The condition asks for a tag that the codec does not name; `command_id` is not a UUID;
                `connection` is one of another database.
        """
        request = self._appender.request(events, condition, command_id)
        if not request.batch and not request.depends:
            return []
        if connection is not None:
            require_connection(connection, self._engine)
            return self._appender.append_within(connection, request)
        try:
            stored = self._writer.write(request, self._appender.perform)
        except TakesLong:
            # Much that is done under the writer's lock would hold up the others. What they append meanwhile is little.
            holds_until = self._appender.index.holds_until(condition.query, condition.after)  # type: ignore[union-attr]
            request = request._replace(insists=True, holds_until=holds_until)
            stored = self._writer.write(request, self._appender.perform)
        self._arrivals.announce()
        return stored

    @overload
    def replay_all(self, *, undecodable: Literal["raise"] = "raise") -> list[StoredEvent[EventT]]: ...
    @overload
    def replay_all(self, *, undecodable: Undecodable) -> list[StoredEvent[EventT | UndecodableEvent]]: ...
    def replay_all(self, *, undecodable: Undecodable = "raise") -> list[Any]:
        """Returns every event there is, by sequence; see `stream` for a log that does not fit into memory."""
        return self.replay_from(0, undecodable=undecodable)

    @overload
    def replay_from(self, sequence: int, *, undecodable: Literal["raise"] = "raise") -> list[StoredEvent[EventT]]: ...
    @overload
    def replay_from(
        self, sequence: int, *, undecodable: Undecodable
    ) -> list[StoredEvent[EventT | UndecodableEvent]]: ...
    def replay_from(self, sequence: int, *, undecodable: Undecodable = "raise") -> list[Any]:
        """Returns every event from `sequence` on, that one included; arguments and errors as of `stream`."""
        with garbage_collection_paused():
            return list(self.stream(after=max(number("sequence", sequence) - 1, 0), undecodable=undecodable))

    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Literal["raise"] = "raise",
    ) -> Iterator[StoredEvent[EventT]]: ...
    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable,
    ) -> Iterator[StoredEvent[EventT | UndecodableEvent]]: ...
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
    ) -> Iterator[StoredEvent[Any]]:
        """Yields events by sequence, a page of them in memory at a time, however long the log is.

        Between pages no transaction is open, so a slow consumer holds up nobody. What others store meanwhile
        comes too: the stream ends when it finds nothing new.

        Args:
            after: Only events with a higher sequence; 0 for all.
            limit: At most so many events.
            event_types: Only events that are stored under these names, see `event_type_name`. Where an upcaster
                renames events, name the old one as well.
            query: Only events that match; those of one thread, say, are found by an index.
            undecodable: What to do at an event that cannot be decoded: `raise`, or `keep` it in its place as
                an `UndecodableEvent`.

        Raises:
            EventDecodeError: At such an event. All before it were yielded.
            StoreUnavailable: The database cannot be read.
            ValueError: A number below 0, or an unknown word for `undecodable`; both `event_types` and `query`; a tag
                that the codec does not name.
            TypeError: `event_types` is one text.
        """
        return self._reader.stream(after, limit, Selection(event_types, query, undecodable))

    @overload
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Literal["raise"] = "raise",
        end: EndEvent | None = None,
    ) -> Subscription[EventT]: ...
    @overload
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable,
        end: EndEvent | None = None,
    ) -> Subscription[EventT | UndecodableEvent]: ...
    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
        end: EndEvent | None = None,
    ) -> Subscription[Any]:
        """Returns an iterator of what is stored, and then of what comes: in order, without a gap, each event once.

        It is woken at once by appends of this process, soon by those of others: within 25 ms on an SQLite file, by a
        notification of a PostgreSQL server. An append with `connection=` counts as one of others.

        Args:
            after: Only events with a higher sequence; 0 for all.
            event_types: As of `stream`.
            query: As of `stream`.
            undecodable: As of `stream`.
            end: Ends it when it is set: a `threading.Event`, say, that the whole application shares.

        Raises:
            ValueError: As of `stream`.
            TypeError: As of `stream`.
        """
        tail = self._reader.tail(after, Selection(event_types, query, undecodable))
        return self._subscribed(Subscription(self._engine, self._arrivals, tail, end))

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
    ) -> NamedSubscription[EventT]: ...
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
    ) -> NamedSubscription[EventT | UndecodableEvent]: ...
    def subscription(
        self,
        name: str,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: Undecodable = "raise",
        end: EndEvent | None = None,
    ) -> NamedSubscription[Any]:
        """Returns a subscription that begins after the position saved under a name, see `NamedSubscription.commit`.

        Args:
            name: Of the consumer: one at a time deals with the events of a name.
            after: Where it begins when the name is new; 0 with the first event, `last_sequence()` with the next.
            event_types: As of `stream`.
            query: As of `stream`.
            undecodable: As of `stream`.
            end: As of `subscribe`.

        Raises:
            StoreUnavailable: The database cannot be read; or not written, where the name is new.
            ValueError: As of `stream`; the name is empty.
            TypeError: As of `stream`; the name is not text.
        """
        tail = self._reader.tail(after, Selection(event_types, query, undecodable))
        saved = SavedPosition(self._engine, self._driver_errors, name, tail.position)
        tail.move(saved.sequence)
        return self._subscribed(NamedSubscription(self._engine, self._arrivals, tail, end, saved))

    def _subscribed(self, subscription: SubscriptionT) -> SubscriptionT:
        with self._subscribing:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """Ends the subscriptions, and gives back the connection that appends keep; the store stays usable."""
        with self._subscribing:
            subscriptions = [*self._subscriptions]
        for subscription in subscriptions:
            subscription.close()
        self._writer.close()

    def last_sequence(self) -> int:
        """Returns the sequence of the newest event, 0 for an empty log; takes the same time for any log."""
        return self._reader.last_sequence()
