"""The rows of the log as they are, whatever events an application has defined."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from threading import Event
from typing import Any, NamedTuple

from pydantic_core import from_json

from peon.persistence import Database, EventCodec, EventQuery, EventStore, StoredEvent, UndecodableEvent
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log.codec_tags import CodecTags
from peon.persistence.log.matcher import Matcher
from peon.persistence.schema import MAXIMUM_SEQUENCE, tag_positions


class RawEvent(NamedTuple):
    """The type and the payload of a stored event."""

    event_type: str
    payload: str


class _AnyType(dict[str, Callable[[str | bytes], Any]]):
    def __missing__(self, event_type: str) -> Callable[[str | bytes], Any]:
        return partial(RawEvent, event_type)


class _AnyTags(CodecTags):
    """Takes any query: which tags and types the application's codec names is not known.

    Args:
        lists: The tags that may have several values.
    """

    def __init__(self, lists: Collection[str]) -> None:
        self.names = self.lists = frozenset(lists)

    def require_types(self, event_types: Iterable[str] | None) -> None:
        pass

    def require_possible(self, query: EventQuery, *, undecodable: bool = False) -> None:
        pass


class RawCodec(EventCodec[Any]):
    """Decodes every row to a `RawEvent`; it encodes nothing.

    Args:
        list_tags: See `_AnyTags`.
    """

    def __init__(self, list_tags: Collection[str] = ()) -> None:
        self.decoders = _AnyType()
        self.event_classes = frozenset()
        self.query_tags = _AnyTags(list_tags)
        self.tags = self.query_tags.names

    def decode(self, sequence: int, event_type: str, payload: str) -> RawEvent:  # noqa: ARG002
        return RawEvent(event_type, payload)


RawStored = StoredEvent[RawEvent | UndecodableEvent]
"""The event is an `UndecodableEvent` if the row is damaged, for example if its time is none."""


class Selection:
    """The events of a database that match a query. They can be read at any revision."""

    def __init__(self, database: Database, query: EventQuery) -> None:
        # A field other than the identifiers may be a list. That is asked for, which finds single values as well.
        list_tags = dict(query.tags)
        self._log: EventStore[Any] = EventStore(database.engine, codec=RawCodec(list_tags))
        self._matcher = Matcher(query, list_tags)
        with DriverErrors(database.engine), database.read_transaction() as connection:
            # Before revision 004 there is no index.
            self._has_index = database.engine.dialect.has_table(connection, tag_positions.name)
        self._query = query if self._has_index and query.clauses() else None

    def stored(
        self,
        after: int = 0,
        before: int = MAXIMUM_SEQUENCE,
        limit: int | None = None,
        *,
        newest_first: bool = False,
    ) -> Iterator[RawStored]:
        """Yields at most `limit` stored events between two sequences, both excluded."""
        found = self._all(after, before, newest_first=newest_first)
        for number, stored in enumerate(found):
            if number == limit:
                return
            yield stored

    def _all(self, after: int, before: int, *, newest_first: bool) -> Iterator[RawStored]:
        if before <= after + 1:
            return
        for stored in self._log.stream(
            after=after,
            before=before if newest_first else None,
            newest_first=newest_first,
            query=self._query,
            undecodable=UndecodableEvent,
        ):
            if stored.sequence >= before:
                return
            if self._has_index or self._matches(stored):
                yield stored

    def followed(self, after: int, stop: Event) -> Iterator[RawStored]:
        """Yields the events after a sequence, and waits for new ones until `stop` is set."""
        with self._log.subscribe(
            after=after, query=self._query, undecodable=UndecodableEvent, stop=stop
        ) as subscription:
            for stored in subscription:
                if self._has_index or self._matches(stored):
                    yield stored

    def _matches(self, stored: RawStored) -> bool:
        return self._matcher.matches((stored.sequence, stored.event.event_type, stored.event.payload, ""))


def parsed(payload: str) -> Any:
    """Returns the JSON value of a payload, `None` if it is not JSON."""
    try:
        return from_json(payload)
    except (ValueError, TypeError):  # in a damaged file, the column may hold anything
        return None
