"""Reads the log from where the last read ended."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self

from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import Pages
from peon.persistence.log.reader import LogReader, Selection, checked_number, keeps_undecodable
from peon.persistence.log.stored_event import StoredEvent, StoredT, decoded


class Tail(Generic[StoredT]):
    """The events after a sequence, as far as they are stored.

    Args:
        pages: See `LogPages.read`.
        last_sequence: Returns the end of the log; given if the pages leave out events, so that those are not read
            again.
        keep: See `decoded`.

    Attributes:
        position: The sequence up to which the log was read: every event up to there was returned or left out.
    """

    def __init__(
        self,
        pages: Pages,
        last_sequence: Callable[[], int] | None,
        codec: EventCodec[Any],
        after: int,
        *,
        keep: bool,
    ) -> None:
        self._pages = pages
        self._last_sequence = last_sequence
        self._codec = codec
        self._keep = keep
        self._events: Iterator[StoredEvent[StoredT]] = iter(())
        self.position = after

    @classmethod
    def of(cls, reader: LogReader, after: int, selection: Selection) -> Self:
        """Returns the tail of a log; raises what `EventStore.stream` raises for the same arguments."""
        after = checked_number("after", after)
        keep = keeps_undecodable(selection.undecodable)
        everything = selection.event_types is None and selection.query is None
        last_sequence = None if everything else reader.last_sequence
        return cls(reader.pages(selection), last_sequence, reader.codec, after, keep=keep)

    def move(self, after: int) -> None:
        self._events = iter(())
        self.position = after

    def next(self) -> StoredEvent[StoredT] | None:
        """Returns the next event, `None` if there is none yet.

        Raises:
            EventDecodeError: It cannot be decoded; another call raises again.
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
        return stored

    def _read(self) -> bool:
        """Reads a page; returns whether there was one."""
        # Before the page: events that are stored after this moment must not be skipped.
        end = self._last_sequence() if self._last_sequence is not None else 0
        page = next(self._pages(self.position, None), None)
        if page is None:
            self.position = max(self.position, end)
            return False
        self._events = decoded([page], self._codec, keep=self._keep)
        return True
