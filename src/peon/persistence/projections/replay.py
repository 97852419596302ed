"""Applies stored events to a projection, page by page; records those that cannot be applied as problems."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from sqlalchemy import Connection, Engine

from peon.payloads import event_type_name
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log.codec import EventCodec, UndecodableEvent
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import Problem, add_problems
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.runtime.garbage_collection import garbage_collection_paused

Progress = Callable[[int, int], None]
"""Takes the number of events done, and the number of events to do in all."""


def applied(
    projection: Projection, connection: Connection, events: list[StoredEvent[Any]], *, follow: bool = False
) -> dict[int, str]:
    """Applies events, and returns the reason for each refused one, by sequence.

    An exception of the projection keeps its type, and a note names the projection and the events.

    Args:
        follow: Whether the note names the one event that the projection has reached. That takes a twentieth of the
            time of an append of ten events.

    Raises:
        TypeError: The projection refused an event that it was not given, or ended the transaction.
    """
    transaction = connection.get_transaction()
    followed = _Followed(events) if follow else None
    try:
        refusals = projection.apply(connection, events if followed is None else followed)
        reasons = dict(refusals or ())  # a generator runs only now
    except Exception as error:
        current = followed.current if followed is not None else None
        _add_note(error, f"raised by projection {projection.name} {_place(current, events)}")
        raise
    if transaction is not None and connection.get_transaction() is not transaction:
        raise TypeError(
            f"projection {projection.name} ended the transaction of the events, which only its owner may end"
        )
    if reasons and not reasons.keys() <= {stored.sequence for stored in events}:
        raise TypeError(f"projection {projection.name} refused an event that it was not given")
    return reasons


class _Followed(list[StoredEvent[Any]]):
    """Events that know which of them the last iteration has reached.

    Attributes:
        current: That event; `None` before the first and after the last.
    """

    current: StoredEvent[Any] | None = None

    def __iter__(self) -> Iterator[StoredEvent[Any]]:
        for self.current in super().__iter__():
            yield self.current
        self.current = None


def _place(current: StoredEvent[Any] | None, events: list[StoredEvent[Any]]) -> str:
    if len(events) == 1:
        current = events[0]
    if current is None:
        return f"in events {events[0].sequence} to {events[-1].sequence}"
    return f"at event {current.sequence} ({event_type_name(current.event)})"


def _add_note(error: Exception, note: str) -> None:
    if note not in getattr(error, "__notes__", ()):  # an exception object may be raised again
        error.add_note(note)


class Replay:
    """Reads the log through connections that the caller gives."""

    def __init__(self, engine: Engine, codec: EventCodec[Any]) -> None:
        self._pages = LogPages(engine, DriverErrors(engine))
        self._codec = codec

    def apply_pages(
        self,
        connection: Connection,
        projection: Projection,
        after: int,
        *,
        pages: int | None = None,
        until: int | None = None,
        meter: "Meter | None" = None,
        change: Callable[[list[LogRow]], list[LogRow]] | None = None,
    ) -> int:
        """Applies the events above `after`; those that cannot be applied become problems.

        Args:
            pages: The maximum number of pages.
            until: The sequence of the last event to apply.
            change: Takes the rows of a page, and returns those that are applied instead.

        Returns:
            The sequence of the last event that was read; `after` if there were no more.
        """
        for _ in count() if pages is None else range(pages):
            with garbage_collection_paused(connection.dialect):
                page = self._pages.read_page(connection, after)
                if change is not None:
                    page = change(page)
                last = self._apply(connection, projection, page, until)
            if last is None:
                break
            if meter is not None:
                meter.add(last - after)
            after = last
        return after

    def _apply(
        self, connection: Connection, projection: Projection, page: list[LogRow], until: int | None
    ) -> int | None:
        if until is not None:
            page = [row for row in page if row[0] <= until]
        if not page:
            return None
        last = page[-1][0]
        events: list[StoredEvent[Any]] = []
        problems: list[Problem] = []
        for stored in with_pauses(decoded([page], self._codec, keep=True), connection.dialect):
            if isinstance(stored.event, UndecodableEvent):
                undecodable = stored.event
                problems.append(Problem(projection.name, stored.sequence, undecodable.event_type, undecodable.reason))
            else:
                events.append(stored)
        reasons = applied(projection, connection, events, follow=True) if events else {}
        if reasons:
            problems += [
                Problem(projection.name, stored.sequence, event_type_name(stored.event), reasons[stored.sequence])
                for stored in events
                if stored.sequence in reasons
            ]
        add_problems(connection, problems)
        return last


class Meter:
    """Counts the events that are done, and reports them."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report = report
        self._done = 0
        self._total = total

    def add(self, events: int) -> None:
        self._done += events
        # Others may append meanwhile, so more can be done than was counted.
        self._total = max(self._total, self._done)
        if self._report is not None:
            self._report(self._done, self._total)

    def finish(self) -> None:
        """Reports the rest as done: other processes have done it meanwhile."""
        if self._done < self._total:
            self.add(self._total - self._done)
