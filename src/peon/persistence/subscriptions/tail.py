"""Reads the log from where the last read ended."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, Self

from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import Pages
from peon.persistence.log.reader import LogReader, Selection, checked_number, keeps_undecodable
from peon.persistence.log.stored_event import NO_TIME, StoredEvent, StoredT, decoded
from peon.persistence.runtime.instrumentation import Telemetry


class Tail(Generic[StoredT]):
    """The events after a sequence, as far as they are stored.

    Args:
        pages: See `LogPages.read`.
        end_after: See `LogReader.end_after`.
        telemetry: Is told how far the tail is behind the log.
        leaves_out: Whether the pages leave out events. Those are not read again.
        keep: See `decoded`.

    Attributes:
        name: Of the durable subscription that reads it, if it is one.
        position: The sequence up to which the log was read: every event up to there was returned or left out.
    """

    def __init__(
        self,
        pages: Pages,
        end_after: Callable[[int], int],
        codec: EventCodec[Any],
        after: int,
        telemetry: Telemetry,
        *,
        leaves_out: bool,
        keep: bool,
    ) -> None:
        self._pages = pages
        self._end_after = end_after
        self._leaves_out = leaves_out
        self._is_checked = False
        self._codec = codec
        self._keep = keep
        self._events: Iterator[StoredEvent[StoredT]] = iter(())
        self._telemetry = telemetry
        self._is_new_page = False
        self.name: str | None = None
        self.position = after

    @classmethod
    def of(cls, reader: LogReader, after: int, selection: Selection) -> Self:
        """Returns the tail of a log; raises what `EventStore.stream` raises for the same arguments."""
        after = checked_number("after", after)
        keep = keeps_undecodable(selection.undecodable)
        leaves_out = selection.event_types is not None or selection.query is not None
        pages = reader.pages(selection)
        return cls(pages, reader.end_after, reader.codec, after, reader.telemetry, leaves_out=leaves_out, keep=keep)

    def move(self, after: int) -> None:
        self._events = iter(())
        self._is_checked = False
        self.position = after

    def next(self) -> StoredEvent[StoredT] | None:
        """Returns the next event, `None` if there is none yet.

        Raises:
            EventDecodeError: It cannot be decoded; another call raises again.
            PositionBeyondEnd: The log ends before the position.
            StoreUnavailable: The database cannot be read; another call may succeed.
        """
        while (stored := self.next_read()) is None:
            if not self._read():
                return None
        return stored

    def next_read(self) -> StoredEvent[StoredT] | None:
        """Like `next`, without reading the database again: `None` if another page is needed."""
        stored = next(self._events, None)
        if stored is not None:
            self.position = stored.sequence
            if self._is_new_page and self._telemetry.is_on and stored.stored_at is not NO_TIME:
                age = datetime.now(UTC) - stored.stored_at
                self._telemetry.subscription_lag(age.total_seconds(), self.name)
            self._is_new_page = False
        return stored

    def _read(self) -> bool:
        """Reads a page; returns whether there was one."""
        # Before the page: events that are stored after this moment must not be skipped.
        end = self._end_after(self.position) if self._leaves_out or not self._is_checked else 0
        self._is_checked = True
        page = next(self._pages(self.position, None), None)
        if page is None:
            self.position = max(self.position, end if self._leaves_out else 0)
            return False
        self._events = decoded([page], self._codec, keep=self._keep)
        self._is_new_page = True
        return True
