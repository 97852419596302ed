"""Reads of the log: what is asked for, checked, and where it comes from."""

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from sqlalchemy import Engine, func, select

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.engine import single_reads
from peon.persistence.log.append import require_tags
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import LogPages, Pages
from peon.persistence.log.query import EventQuery, checked_names
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.schema import events as log
from peon.persistence.subscriptions import Tail

LAST_POSSIBLE_SEQUENCE = 2**63 - 1

Undecodable = Literal["raise", "keep"]


class Selection(NamedTuple):
    """Which events are asked for, as `EventStore.stream` explains."""

    event_types: Collection[str] | None
    query: EventQuery | None
    undecodable: Undecodable


class LogReader:
    """Reads the log of `engine`; what it raises is documented with `EventStore`."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._codec = codec
        self._driver_errors = driver_errors
        self._index = TagIndex(engine, driver_errors)

    def stream(self, after: int, limit: int | None, selection: Selection) -> Iterator[StoredEvent[Any]]:
        after = number("after", after)
        remaining = None if limit is None else number("limit", limit)
        keep = _keeps(selection.undecodable)
        return decoded(self._pages(selection)(after, remaining), self._codec, keep=keep)

    def tail(self, after: int, selection: Selection) -> Tail[Any]:
        after = number("after", after)
        keep = _keeps(selection.undecodable)
        everything = selection.event_types is None and selection.query is None
        end = None if everything else self.last_sequence
        return Tail(self._pages(selection), end, self._codec, after, keep=keep)

    def last_sequence(self) -> int:
        with self._driver_errors, single_reads(self._engine).connect() as connection:
            return connection.scalar(select(func.max(log.c.sequence))) or 0

    def _pages(self, selection: Selection) -> Pages:
        event_types = checked_names(selection.event_types)
        query = selection.query
        if query is None:
            return LogPages(self._engine, self._driver_errors, event_types).read
        if not isinstance(query, EventQuery):
            raise TypeError(f"query is an EventQuery, not {type(query).__name__}")
        if event_types is not None:
            raise ValueError("event_types and query were given: name the types in the query")
        require_tags(query, self._codec)
        return partial(self._index.pages, query)


def number(name: str, value: int) -> int:
    """Returns the argument, no larger than a database takes.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below 0.
    """
    if type(value) is not int:
        raise TypeError(f"{name} is a number from 0 on, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} is a number from 0 on, not {value}")
    return min(value, LAST_POSSIBLE_SEQUENCE)


def _keeps(undecodable: Undecodable) -> bool:
    if undecodable not in ("raise", "keep"):
        raise ValueError(f"undecodable is 'raise' or 'keep', not {undecodable!r}")
    return undecodable == "keep"
