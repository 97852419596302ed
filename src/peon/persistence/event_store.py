"""The event log: appends a batch of events in one transaction, and reads every event back in order."""

from collections.abc import Callable, Collection, Iterable, Iterator
from threading import RLock
from typing import Any, Generic, Never, TypeVar
from uuid import UUID
from weakref import WeakSet

from pydantic import BaseModel
from sqlalchemy import Connection, Engine
from typing_extensions import TypeVar as TypeVarWithDefault

from peon.orchestration import OrchestrationEvent
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.same_database import require_connection
from peon.persistence.group_commit import Writer, writer_for
from peon.persistence.log.append import Appender, AppendHook, AppendRequest
from peon.persistence.log.codec import EventCodec, UndecodableEvent
from peon.persistence.log.query import AppendCondition, EventQuery
from peon.persistence.log.reader import LogReader, Selection, checked_number
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.log.tag_walk import TakesLong
from peon.persistence.orchestration.codec import codec_of_store
from peon.persistence.runtime.garbage_collection import garbage_collection_paused
from peon.persistence.runtime.instrumentation import Operation
from peon.persistence.runtime.telemetry import telemetry_of
from peon.persistence.subscriptions.durable_subscription import DurableSubscription
from peon.persistence.subscriptions.notifier import notifier_of
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import StopEvent, Subscription
from peon.persistence.subscriptions.tail import Tail

EventT = TypeVarWithDefault("EventT", bound=BaseModel, default=OrchestrationEvent)
"""The union of events of a store; the domain's own by default."""

KeptT = TypeVarWithDefault("KeptT", bound=UndecodableEvent, default=Never)
"""`UndecodableEvent` if a read yields those."""

SubscriptionT = TypeVar("SubscriptionT", bound=Subscription[Any])


class EventStore(Generic[EventT]):
    """The append-only log of events in a migrated database. One store serves any number of threads.

    Args:
        engine: One of `create_engine`. Any other engine of SQLite or PostgreSQL works, with its own durability.
        codec: Encodes and decodes the events; the domain's own events by default. In a union that has all of those,
            they keep their check, tags and upcasters.
        on_append: Called in the transaction of each append, after its events were stored. An exception that it
            raises fails the append.
    """

    def __init__(
        self, engine: Engine, codec: EventCodec[EventT] | None = None, *, on_append: AppendHook | None = None
    ) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"EventStore takes an Engine, not {type(engine).__name__}; AsyncEventStore an AsyncEngine")
        used_codec = codec_of_store(codec)
        self._engine = engine
        self._driver_errors = DriverErrors(engine, expects_tables=True)
        self._reader = LogReader(engine, used_codec, self._driver_errors)
        self._appender: Appender[EventT] = Appender(engine, used_codec, on_append, self._driver_errors)
        self._notifier = notifier_of(engine)
        self._telemetry = telemetry_of(engine)
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
            events: The events in the order in which they are stored; may be empty.
            condition: Append only if no event that matches its query was stored after its position.
            command_id: A UUID or its text that identifies the command. Repeating the command stores nothing, and
                returns what was stored the first time.
            connection: Stores the events in the transaction that this connection is in, or begins one; its owner
                commits or rolls back. An append that fails leaves nothing behind in that transaction.

        Returns:
            The events with their sequences, which are contiguous and higher than all before. When the call returns,
            they are durable, unless `connection` was given.

        Raises:
            EventEncodeError: An event could not be read back as it is. Nothing was stored.
            EventDecodeError: An event that the repeated command stored cannot be read. Nothing was stored.
            ConcurrencyError: The append condition failed. Nothing was stored.
            PositionBeyondEnd: The position of the condition is beyond the end of the log. Nothing was stored.
            CommandConflict: The command has stored other events. Nothing was stored.
            CommandEventsRemoved: Events that the repeated command stored were removed since. Nothing was stored.
            CommandEventsMerged: A compaction has merged them since. Nothing was stored.
            ProjectionError: An event contradicts the projections, if the store keeps any. Nothing was stored.
            StoreUnavailable: The database is locked, read-only, full or damaged. Nothing was stored. If the
                connection to a server is lost during COMMIT, or the disk of an SQLite file fails, the outcome is
                unknown; the message says so.
            TypeError: `events` is a single event, or `condition` or `connection` is of the wrong type.
            ValueError: No event can match the query of the condition, see `EventQuery`; `command_id` is not a UUID; the
                connection is to another database, or its isolation level is AUTOCOMMIT.
        """
        with self._telemetry.operation("append") as operation:
            request = self._appender.request(events, condition, command_id)
            if not request.batch and not request.is_conditional:
                return []
            operation.handled(len(request.batch))
            if request.command is not None:
                request = request._replace(operation=operation)
            if connection is not None:
                require_connection(connection, self._engine)
                return self._appender.append_within(connection, request)
            stored = self._write(request, operation)
        self._notifier.announce()
        return stored

    def _write(self, request: AppendRequest[EventT], operation: Operation) -> list[StoredEvent[EventT]]:
        try:
            return self._writer.write(request, self._appender.perform, operation)
        except TakesLong:
            # Answering would hold the write lock for too long. So the condition is checked up to the present end of
            # the log without the lock; what others append meanwhile is little.
            request = self._appender.checked_outside(request)
            return self._writer.write(request, self._appender.perform, operation)

    def replay_all(self, *, undecodable: type[KeptT] | None = None) -> list[StoredEvent[EventT | KeptT]]:
        """Returns all events by sequence. See `stream` for a log that does not fit into memory."""
        return self.replay_from(0, undecodable=undecodable)

    def replay_from(
        self, sequence: int, *, undecodable: type[KeptT] | None = None
    ) -> list[StoredEvent[EventT | KeptT]]:
        """Returns the events from `sequence` on, including that one. See `stream` for `undecodable` and errors.

        The number after the last one is fine. A higher one raises `PositionBeyondEnd`.
        """
        after = max(checked_number("sequence", sequence) - 1, 0)
        with self._telemetry.operation("replay") as operation, garbage_collection_paused(self._engine.dialect):
            events = list(self.stream(after=after, undecodable=undecodable))
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
    ) -> Iterator[StoredEvent[EventT | KeptT]]:
        """Yields events by sequence, with one page of them in memory at a time.

        Between pages no transaction is open, so a slow consumer blocks no other work. Events that others store
        meanwhile are yielded too: the stream ends when it finds no more.

        Args:
            after: Only events with a higher sequence; 0 for all.
            limit: The maximum number of events.
            event_types: Only events that are stored under these names, see `event_type_name`. If an upcaster
                renames events, give the old name as well.
            query: Only events that match. An index finds them, for example those of one thread.
            newest_first: Yield the events by falling sequence, down to the one above `after`. Events that others store
                meanwhile are not yielded.
            before: Newest first, only events with a lower sequence: for the next page, the sequence of the last event
                of this one.
            undecodable: `UndecodableEvent` to yield one in the place of each event that cannot be decoded; by
                default such an event raises an error.

        Raises:
            EventDecodeError: At an event that cannot be decoded. All events before it were yielded.
            PositionBeyondEnd: `after` is beyond the end of the log. The end itself is fine: nothing is yielded.
            StoreUnavailable: The database cannot be read.
            ValueError: A number is below 0; both `event_types` and `query` were given; no event can be of one of the
                types, or match the query, see `EventQuery`; `before` was given without `newest_first`.
            TypeError: An argument is of the wrong type; `event_types` is a single text.
        """
        return self._reader.stream(after, limit, Selection(event_types, query, undecodable), newest_first, before)

    def subscribe(
        self,
        *,
        after: int = 0,
        event_types: Collection[str] | None = None,
        query: EventQuery | None = None,
        undecodable: type[KeptT] | None = None,
        stop: StopEvent | None = None,
        on_caught_up: Callable[[], object] | None = None,
    ) -> Subscription[EventT | KeptT]:
        """Returns a catch-up subscription: it yields stored events, then follows new ones.

        Appends of this process wake it at once. Appends of other processes wake it within 25 ms on an SQLite file,
        and by a notification of the server on PostgreSQL. An append with `connection=` counts as one of another
        process.

        Args:
            after: Only events with a higher sequence; 0 for all.
            event_types: See `stream`.
            query: See `stream`.
            undecodable: See `stream`.
            stop: Ends the subscription when it is set; for example a `threading.Event` that the whole application
                shares.
            on_caught_up: Called, in the thread that iterates, when all stored events were yielded and the
                subscription begins to wait: the first time, and after each wait that yielded an event. For example
                `ready.set` of a `threading.Event`. An exception that it raises is raised by the iteration.

        Raises:
            ValueError: See `stream`.
            TypeError: See `stream`.
        """
        tail: Tail[EventT | KeptT] = Tail.of(self._reader, after, Selection(event_types, query, undecodable))
        return self._registered(Subscription(self._engine, self._notifier, tail, stop, on_caught_up))

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
    ) -> DurableSubscription[EventT | KeptT]:
        """Returns a subscription that resumes after the position saved under a name.

        Args:
            name: The name of the consumer. One consumer of a name at a time is given events; another waits.
            after: Where a new name begins: 0 for the first event, `last_sequence()` for the next one.
            event_types: See `stream`.
            query: See `stream`.
            undecodable: See `stream`.
            stop: See `subscribe`.
            on_caught_up: See `subscribe`.

        Raises:
            StoreUnavailable: The database cannot be read, or not written if the name is new.
            ValueError: See `stream`; the name is empty or not printable.
            TypeError: See `stream`; the name is not text.
        """
        tail: Tail[EventT | KeptT] = Tail.of(self._reader, after, Selection(event_types, query, undecodable))
        tail.name = name
        saved = SavedPosition(self._engine, self._driver_errors, name, tail.position)
        tail.move(saved.sequence)
        return self._registered(DurableSubscription(self._engine, self._notifier, tail, stop, on_caught_up, saved))

    def _registered(self, subscription: SubscriptionT) -> SubscriptionT:
        with self._subscribing:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """Ends the subscriptions and releases the connection that appends keep. The store can still be used."""
        with self._subscribing:
            subscriptions = [*self._subscriptions]
        for subscription in subscriptions:
            subscription.close()
        self._writer.close()

    def last_sequence(self) -> int:
        """Returns the sequence of the newest event, 0 for an empty log. Takes the same time for any log."""
        return self._reader.last_sequence()

    def log_id(self) -> UUID:
        """Returns the identity of this log. A position is meaningful only together with it.

        Each database has its own, also a copy by `copy_database`. A file or server that was restored has the
        identity of the backup, until `renew_log_id` is called.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        return self._reader.identity()

    def renew_log_id(self) -> UUID:
        """Gives this log a new identity, and returns it. Call it after a restore, before clients connect again.

        Raises:
            StoreUnavailable: The database cannot be written.
        """
        return self._reader.renew_identity()
