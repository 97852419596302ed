"""The log: events in, in one transaction a batch; events out, in order, every one of them."""

import gc
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, bindparam, func, select

from peon.orchestration import OrchestrationEvent
from peon.persistence.availability import DriverErrors
from peon.persistence.codec import EventCodec, EventT, UndecodableEvent, orchestration_codec
from peon.persistence.engine import READ_ONLY, begin_writing, sqlite_connection
from peon.persistence.errors import EventDecodeError
from peon.persistence.schema import events as log
from peon.persistence.sequencing import add_rows
from peon.persistence.timestamps import parse_timestamp
from peon.persistence.writer import Writer

StoredT = TypeVar("StoredT", covariant=True)

PAGE_EVENTS = 1_000
"""Rows that a read fetches at once; in smaller pages the query itself begins to cost."""

PAGE_CHARACTERS = 4_000_000
"""Payload text after which a page ends early, so that large events do not fill the memory."""

FETCHED_EVENTS = 20
"""Rows between two looks at that."""

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""Stands for the `stored_at` of a row whose column holds no time, where such rows are kept."""

LAST_POSSIBLE_SEQUENCE = 2**63 - 1

_PAGE = (
    select(log.c.sequence, log.c.event_type, log.c.payload, log.c.stored_at)
    .where(log.c.sequence > bindparam("after"))
    .order_by(log.c.sequence)
    .limit(bindparam("rows"))
)
_PAGE_OF_TYPES = _PAGE.where(log.c.event_type.in_(bindparam("event_types", expanding=True)))

Undecodable = Literal["raise", "keep"]


class StoredEvent(NamedTuple, Generic[StoredT]):
    """An event in its place in the log. A tuple, as it is the cheapest frozen value: it is made for each event read.

    Attributes:
        sequence: Its number, counted from 1 without gaps.
        event: The event; an `UndecodableEvent` where the read was asked to keep those.
        stored_at: When it was stored, in UTC, by the clock of the machine that stored it.
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
        self._reader = engine.execution_options(**{READ_ONLY: True})
        self._codec = codec
        self._driver_errors = DriverErrors(
            engine, hint=". Has the database been migrated? alembic upgrade head does that"
        )
        self._writer = Writer(engine)

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
        # Half the time of calling StoredEvent: no Python code runs for an event.
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
            event_types: Only events of these types, see `event_type_name`.
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
        if isinstance(event_types, str):
            raise TypeError(f"event_types takes a list of names: [{event_types!r}]")
        if undecodable not in ("raise", "keep"):
            raise ValueError(f"undecodable is 'raise' or 'keep', not {undecodable!r}")
        pages = self._pages(position, remaining, None if event_types is None else list(event_types))
        return self._decoded(pages, keep=undecodable == "keep")

    def close(self) -> None:
        """Gives back the connection that appends keep; the store stays usable."""
        self._writer.close()

    def last_sequence(self) -> int:
        """Returns the sequence of the newest event, 0 for an empty log; takes the same time for any log."""
        with self._driver_errors, self._reader.connect() as connection:
            return connection.scalar(select(func.max(log.c.sequence))) or 0

    def _pages(
        self, position: int, remaining: int | None, event_types: list[str] | None
    ) -> Iterator[list[tuple[int, str, str, str]]]:
        while remaining is None or remaining > 0:
            rows = PAGE_EVENTS if remaining is None else min(PAGE_EVENTS, remaining)
            parameters: dict[str, Any] = {"after": position, "rows": rows}
            if event_types is not None:
                parameters["event_types"] = event_types
            page = self._read_page(parameters)
            # Not at a short page: more may have been stored since, and must not be missed.
            if not page:
                return
            yield page
            position = page[-1][0]
            if remaining is not None:
                remaining -= len(page)

    def _read_page(self, parameters: dict[str, Any]) -> list[tuple[int, str, str, str]]:
        with self._driver_errors, self._reader.connect() as connection:
            try:
                return _fetch(connection, parameters)
            except sqlite3.OperationalError as error:
                # Only errors of Python's module itself have no code: it met text that is not UTF-8.
                if hasattr(error, "sqlite_errorcode"):
                    raise
            with _damaged_text_escaped(sqlite_connection(connection)):
                return _fetch(connection, parameters)

    def _decoded(self, pages: Iterator[list[tuple[int, str, str, str]]], *, keep: bool) -> Iterator[StoredEvent[Any]]:
        decode = self._codec.decode
        new = tuple.__new__  # half the time of calling StoredEvent
        text, moment = None, NO_TIME
        for page in pages:
            for sequence, event_type, payload, stored_at in page:
                try:
                    if stored_at != text:  # the events of a batch share it
                        text, moment = None, NO_TIME
                        moment = _parse_stored_at(sequence, event_type, stored_at)
                        text = stored_at
                    event: Any = decode(sequence, event_type, payload)
                except EventDecodeError as error:
                    if not keep:
                        raise
                    event = UndecodableEvent(str(event_type), _as_text(payload), error.reason)
                yield new(StoredEvent, (sequence, event, moment))


def _fetch(connection: Connection, parameters: dict[str, Any]) -> list[tuple[int, str, str, str]]:
    statement = _PAGE_OF_TYPES if "event_types" in parameters else _PAGE
    page: list[tuple[int, str, str, str]] = []
    characters = 0
    with connection.execute(statement, parameters) as result:
        # The driver's rows, as SQLAlchemy's own take a tenth of the time of reading an event.
        while rows := result.cursor.fetchmany(FETCHED_EVENTS):
            page += rows
            characters += sum([len(payload or "") for _, _, payload, _ in rows])  # NULL in a damaged file
            if characters > PAGE_CHARACTERS:
                break
    return page


def _parse_stored_at(sequence: int, event_type: str, stored_at: str) -> datetime:
    try:
        return parse_timestamp(stored_at)
    except (ValueError, TypeError):
        raise EventDecodeError(sequence, event_type, "stored_at is not a timestamp") from None


def _as_text(payload: str | bytes | None) -> str:
    if payload is None:
        return ""
    return payload if isinstance(payload, str) else payload.decode(errors="backslashreplace")


def _number(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} is a number from 0 on, not {value}")
    return min(value, LAST_POSSIBLE_SEQUENCE)


@contextmanager
def _damaged_text_escaped(connection: sqlite3.Connection) -> Iterator[None]:
    r"""Reads bytes that are not UTF-8 as \xNN, which no JSON contains: such a row fails alone, not its page."""
    connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str


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
