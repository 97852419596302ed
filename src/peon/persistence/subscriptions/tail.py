"""Reads the log on from where it was left."""

from collections.abc import Callable, Iterator
from typing import Any, Generic

from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import Pages
from peon.persistence.log.stored_event import StoredEvent, StoredT, decoded


class Tail(Generic[StoredT]):
    """The events after a sequence, as far as there are any.

    Args:
        pages: As `LogPages.read`.
        last_sequence: Returns the end of the log; given where the pages leave events out, so that what was passed
            over is not read again.
        keep: As of `decoded`.

    Attributes:
        position: The sequence of the last event that was returned.
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
        self._read_to = after
        self.position = after

    def move(self, after: int) -> None:
        self._events = iter(())
        self._read_to = self.position = after

    def next(self) -> StoredEvent[StoredT] | None:
        """Returns the next event, `None` where there is none yet.

        Raises:
            EventDecodeError: It cannot be decoded; another call raises again.
            StoreUnavailable: The database cannot be read; another call may succeed.
        """
        while (stored := next(self._events, None)) is None:
            if not self._read():
                return None
        self.position = self._read_to = stored.sequence
        return stored

    def _read(self) -> bool:
        """Reads a page; returns whether there was one."""
        # Before the page: what is stored after this is not passed over.
        end = self._last_sequence() if self._last_sequence is not None else 0
        page = next(self._pages(self._read_to, None), None)
        if page is None:
            self._read_to = max(self._read_to, end)
            return False
        self._events = decoded([page], self._codec, keep=self._keep)
        return True
