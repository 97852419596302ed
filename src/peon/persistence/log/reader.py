"""Reads the log: checks what a caller asks for, and finds the rows."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.errors import PositionBeyondEnd
from peon.persistence.log.codec import EventCodec, UndecodableEvent
from peon.persistence.log.identity import identity_of_log, renew_identity
from peon.persistence.log.pages import LogPages, LogRow, Pages
from peon.persistence.log.query import EventQuery, checked_names
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.runtime.telemetry import telemetry_of
from peon.persistence.schema import LAST_SEQUENCE, MAXIMUM_SEQUENCE


class Selection(NamedTuple):
    """Which events a caller asks for. See `EventStore.stream`."""

    event_types: Collection[str] | None
    query: EventQuery | None
    undecodable: type[UndecodableEvent] | None


class LogReader:
    """Reads the log of `engine`. What it raises is documented with `EventStore`."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], driver_errors: DriverErrors) -> None:
        self._engine = engine
        self.codec = codec
        self.telemetry = telemetry_of(engine)
        self._driver_errors = driver_errors
        self._index = TagIndex(engine, driver_errors, codec.query_tags.lists)

    def stream(
        self,
        after: int,
        limit: int | None,
        selection: Selection,
        newest_first: bool = False,
        before: int | None = None,
    ) -> Iterator[StoredEvent[Any]]:
        after = checked_number("after", after)
        remaining = None if limit is None else checked_number("limit", limit)
        keep = keeps_undecodable(selection.undecodable)
        if newest_first:
            end = MAXIMUM_SEQUENCE if before is None else checked_number("before", before)
            pages = self._pages_backwards(selection)(after, remaining, end)
        elif before is None:
            pages = self.pages(selection)(after, remaining)
        else:
            raise ValueError("before was given without newest_first=True")
        return decoded(self._not_beyond_end(pages, after), self.codec, keep=keep)

    def _not_beyond_end(self, pages: Iterator[list[LogRow]], after: int) -> Iterator[list[LogRow]]:
        page = next(pages, None)
        if page is not None:
            yield page
            yield from pages
        elif after > 0:
            self.end_after(after)

    def last_sequence(self) -> int:
        with self._driver_errors, backend_of(self._engine).single_reads(self._engine).connect() as connection:
            last: int = connection.scalars(LAST_SEQUENCE).one()
            return last

    def end_after(self, position: int) -> int:
        """Returns the sequence of the last event; raises `PositionBeyondEnd` if it is below a position."""
        end = self.last_sequence()
        if end < position:
            raise PositionBeyondEnd(database_name(self._engine), position, end)
        return end

    def identity(self) -> UUID:
        with self._driver_errors, backend_of(self._engine).single_reads(self._engine).connect() as connection:
            return identity_of_log(connection)

    def renew_identity(self) -> UUID:
        return in_own_transaction(self._engine, self._driver_errors, renew_identity)

    def pages(self, selection: Selection) -> Pages:
        """Returns the function that reads the selected rows, page by page."""
        event_types, query = self._checked(selection)
        if query is None:
            return LogPages(self._engine, self._driver_errors, event_types).read
        return partial(self._index.pages, query)

    def _pages_backwards(self, selection: Selection) -> Callable[[int, int | None, int], Iterator[list[LogRow]]]:
        event_types, query = self._checked(selection)
        if query is None:
            return LogPages(self._engine, self._driver_errors, event_types, newest_first=True).read
        return partial(self._index.pages_backwards, query)

    def _checked(self, selection: Selection) -> tuple[tuple[str, ...] | None, EventQuery | None]:
        event_types, query = checked_names(selection.event_types), selection.query
        keep = keeps_undecodable(selection.undecodable)
        if query is None:
            if not keep:  # an undecodable event may be of any type
                self.codec.query_tags.require_types(event_types)
            return event_types, None
        if not isinstance(query, EventQuery):
            raise TypeError(f"query is an EventQuery, not {type(query).__name__}")
        if event_types is not None:
            raise ValueError("event_types and query were given: name the types in the query")
        self.codec.query_tags.require_possible(query, undecodable=keep)
        return None, query


def checked_number(name: str, value: int) -> int:
    """Returns the argument, reduced to the largest number that a database takes.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below 0.
    """
    if type(value) is not int:
        raise TypeError(f"{name} is a number from 0 on, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} is a number from 0 on, not {value}")
    return min(value, MAXIMUM_SEQUENCE)


def keeps_undecodable(undecodable: type[UndecodableEvent] | None) -> bool:
    """Returns whether a read yields undecodable events; checks the argument of that name."""
    if undecodable is None:
        return False
    if undecodable is UndecodableEvent:
        return True
    raise ValueError(f"undecodable is None or the class UndecodableEvent, not {undecodable!r:.50}")
