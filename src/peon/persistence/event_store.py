"""The log: events in, in one transaction a batch; events out, in order, every one of them."""

import gc
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, func, select

from peon.orchestration import OrchestrationEvent
from peon.persistence.availability import DriverErrors, database_name
from peon.persistence.codec import EventCodec, EventT, UndecodableEvent, orchestration_codec
from peon.persistence.engine import READ_ONLY, begin_writing
from peon.persistence.errors import EventDecodeError
from peon.persistence.paging import LogPages, LogRow
from peon.persistence.schema import events as log
from peon.persistence.sequencing import add_rows
from peon.persistence.timestamps import parse_timestamp
from peon.persistence.writer import Writer

StoredT = TypeVar("StoredT", covariant=True)

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""Stands for the `stored_at` of a row whose column holds no time, where such rows are kept."""

LAST_POSSIBLE_SEQUENCE = 2**63 - 1

Undecodable = Literal["raise", "keep"]


class StoredEvent(NamedTuple, Generic[StoredT]):
    """An event in its place in the log. A tuple, as it is the cheapest frozen value: it is made for each event read.

    Attributes:
        sequence: Its number, counted from 1 without gaps.
        event: The event; an `UndecodableEvent` where the read was asked to keep those.
        stored_at: When it was stored, in UTC, by the clock of the machine that stored it. `NO_TIME` for an
            `UndecodableEvent` whose row does not say.
    """

    sequence: int
    event: StoredT
    stored_at: datetime


class EventStore(Generic[EventT]):
    """The append-only log of events in a migrated database. One store serves any number of threads.

    Args:
        engine: Best of `create_engine`; any other of SQLite or PostgreSQL works, with its own durability.
        codec: For which events; the domain's own by default.
    """

    @overload
    def __init__(self: "EventStore[OrchestrationEvent]", engine: Engine) -> None: ...
    @overload
    def __init__(self, engine: Engine, codec: EventCodec[EventT]) -> None: ...
    def __init__(self, engine: Engine, codec: EventCodec[Any] = orchestration_codec) -> None:
        self._engine = engine
        self._codec = codec
        self._driver_errors = DriverErrors(
            engine, hint=". Has the database been migrated? alembic upgrade head does that"
        )
        self._writer = Writer(engine)

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
            StoreUnavailable: The database is locked, read-only, full, damaged. Nothing was stored.
            TypeError: `events` is a single event.
        """
        if isinstance(events, BaseModel):
            raise TypeError(f"append_all takes a list of events: [{type(events).__name__}(…)]")
        batch = list(events)
        columns = self._codec.encode(batch)
        if not batch:
            return []
        with self._driver_errors:
            if connection is None:
                with self._writer as own:
                    first, stored_at = add_rows(own, *columns)
            else:
                begin_writing(connection)
                with connection.begin_nested():
                    first, stored_at = add_rows(connection, *columns)
        places = zip(range(first, first + len(batch)), batch, repeat(stored_at), strict=False)
        # Two thirds of the time of calling StoredEvent: no Python code runs for an event.
        return list(map(tuple.__new__, repeat(StoredEvent), places))

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
        with _garbage_collection_paused():
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
        return self._decoded(pages.read(position, remaining), keep=undecodable == "keep")

    def close(self) -> None:
        """Gives back the connection that appends keep; the store stays usable."""
        self._writer.close()

    def last_sequence(self) -> int:
        """Returns the sequence of the newest event, 0 for an empty log; takes the same time for any log."""
        reader = self._engine.execution_options(**{READ_ONLY: True})
        with self._driver_errors, reader.connect() as connection:
            return connection.scalar(select(func.max(log.c.sequence))) or 0

    def _decoded(self, pages: Iterator[list[LogRow]], *, keep: bool) -> Iterator[StoredEvent[Any]]:
        decoders = self._codec.decoders
        new = tuple.__new__  # two thirds of the time of calling StoredEvent
        text, moment = None, NO_TIME
        for page in pages:
            for sequence, event_type, payload, stored_at in page:
                try:
                    if stored_at != text:  # the events of a batch share it
                        moment = parse_timestamp(stored_at)
                        text = stored_at
                    event = decoders[event_type](payload)
                except Exception:
                    # Once more and slower, for the reason.
                    moment, event = self._decode_or_keep(sequence, event_type, payload, stored_at, keep=keep)
                    text = None
                yield new(StoredEvent, (sequence, event, moment))
            # Frees its memory for the next page, which is then in the processor's cache: a tenth faster.
            page.clear()

    def _decode_or_keep(
        self, sequence: int, event_type: str, payload: str, stored_at: str, *, keep: bool
    ) -> tuple[datetime, EventT | UndecodableEvent]:
        moment = NO_TIME
        try:
            moment = _parse_stored_at(sequence, event_type, stored_at)
            return moment, self._codec.decode(sequence, event_type, payload)
        except EventDecodeError as error:
            if not keep:
                raise
            return moment, UndecodableEvent(_as_text(event_type), _as_text(payload), error.reason)


def _parse_stored_at(sequence: int, event_type: str, stored_at: str) -> datetime:
    try:
        return parse_timestamp(stored_at)
    except (ValueError, TypeError):
        raise EventDecodeError(sequence, event_type, "stored_at is not a timestamp") from None


def _as_text(value: str | bytes | None) -> str:
    if value is None:  # in a damaged file
        return ""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def _number(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} is a number from 0 on, not {value}")
    return min(value, LAST_POSSIBLE_SEQUENCE)


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """For a long list of live objects the collector searches in vain, again and again: 3.6 times as long in all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
