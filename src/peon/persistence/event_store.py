"""The log: events in, in one transaction a batch; events out, in order, every one of them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Any, Generic, Literal, overload

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, func, select

from peon.orchestration import OrchestrationEvent
from peon.persistence.availability import DriverErrors, database_name
from peon.persistence.codec import EventCodec, EventT, UndecodableEvent, orchestration_codec
from peon.persistence.engine import READ_ONLY, begin_writing
from peon.persistence.garbage_collection import garbage_collection_paused
from peon.persistence.paging import LogPages
from peon.persistence.schema import events as log
from peon.persistence.sequencing import add_rows
from peon.persistence.stored_events import StoredEvent, decoded
from peon.persistence.writer import Writer

LAST_POSSIBLE_SEQUENCE = 2**63 - 1

Undecodable = Literal["raise", "keep"]

_Append = tuple[list[EventT], list[str], list[str]]
"""A batch, and its columns `event_type` and `payload`."""

AppendHook = Callable[[Connection, list[StoredEvent[Any]]], None]


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
        self._engine = engine
        self._codec = codec
        self._on_append = on_append
        self._driver_errors = DriverErrors(
            engine, hint=". Has the database been migrated? alembic upgrade head does that"
        )
        self._writer: Writer[_Append[EventT], list[StoredEvent[EventT]]] = Writer(engine, self._driver_errors)

    def __repr__(self) -> str:
        return f"<EventStore of {database_name(self._engine)}>"

    def append_all(
        self, events: Iterable[EventT], *, connection: Connection | None = None
    ) -> list[StoredEvent[EventT]]:
        """Stores a batch of events in one transaction: all of them, or none.

        Args:
            events: In the order in which they are to be stored; none at all is allowed.
            connection: Stores them in the transaction that this connection is in, or begins; its owner commits
                or rolls back. An append that fails leaves no trace in it.

        Returns:
            The events with their sequences: contiguous, and above all that were stored before. On return they
            are durable, unless `connection` was given.

        Raises:
            EventEncodeError: One of them would not come back as it is. Nothing was stored.
            ProjectionError: One of them contradicts what the projections hold, where the store has any. Nothing
                was stored.
            StoreUnavailable: The database is locked, read-only, full, damaged. Nothing was stored.
            TypeError: `events` is a single event.
        """
        if isinstance(events, BaseModel):
            raise TypeError(f"append_all takes a list of events: [{type(events).__name__}(…)]")
        batch = list(events)
        columns = self._codec.encode(batch)
        if not batch:
            return []
        if connection is None:
            return self._writer.write((batch, *columns), self._add_together)
        with self._driver_errors:
            begin_writing(connection)
            with connection.begin_nested():
                return self._add(connection, batch, *columns)

    def _add_together(self, connection: Connection, requests: list[_Append[EventT]]) -> list[list[StoredEvent[EventT]]]:
        """Adds the batches of several threads as one, and returns to each its own."""
        if len(requests) == 1:
            return [self._add(connection, *requests[0])]
        columns = [list(chain.from_iterable(column)) for column in zip(*requests, strict=True)]
        stored = iter(self._add(connection, *columns))
        return [list(islice(stored, len(batch))) for batch, _, _ in requests]

    def _add(
        self, connection: Connection, batch: list[EventT], event_types: list[str], payloads: list[str]
    ) -> list[StoredEvent[EventT]]:
        first, stored_at = add_rows(connection, event_types, payloads)
        places = zip(range(first, first + len(batch)), batch, repeat(stored_at), strict=False)
        # Two thirds of the time of calling StoredEvent: no Python code runs for an event.
        stored = list(map(tuple.__new__, repeat(StoredEvent), places))
        if self._on_append is not None:
            self._on_append(connection, stored)
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
            return list(self.stream(after=max(_number("sequence", sequence) - 1, 0), undecodable=undecodable))

    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        undecodable: Literal["raise"] = "raise",
    ) -> Iterator[StoredEvent[EventT]]: ...
    @overload
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
        undecodable: Undecodable,
    ) -> Iterator[StoredEvent[EventT | UndecodableEvent]]: ...
    def stream(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        event_types: Collection[str] | None = None,
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
            undecodable: What to do at an event that cannot be decoded: `raise`, or `keep` it in its place as
                an `UndecodableEvent`.

        Raises:
            EventDecodeError: At such an event. All before it were yielded.
            StoreUnavailable: The database cannot be read.
            ValueError: A number below 0, or an unknown word for `undecodable`.
            TypeError: `event_types` is one text.
        """
        position = _number("after", after)
        remaining = None if limit is None else _number("limit", limit)
        if isinstance(event_types, str) or not all(isinstance(name, str) for name in event_types or ()):
            raise TypeError("event_types takes a list of names, as of event_type_name: ['ProjectCreated']")
        if undecodable not in ("raise", "keep"):
            raise ValueError(f"undecodable is 'raise' or 'keep', not {undecodable!r}")
        pages = LogPages(self._engine, self._driver_errors, event_types)
        return decoded(pages.read(position, remaining), self._codec, keep=undecodable == "keep")

    def close(self) -> None:
        """Gives back the connection that appends keep; the store stays usable."""
        self._writer.close()

    def last_sequence(self) -> int:
        """Returns the sequence of the newest event, 0 for an empty log; takes the same time for any log."""
        reader = self._engine.execution_options(**{READ_ONLY: True})
        with self._driver_errors, reader.connect() as connection:
            return connection.scalar(select(func.max(log.c.sequence))) or 0


def _number(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} is a number from 0 on, not {value}")
    return min(value, LAST_POSSIBLE_SEQUENCE)
