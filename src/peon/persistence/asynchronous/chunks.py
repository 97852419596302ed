"""Events in small portions, so that an event loop gets its turn between them."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

from peon.persistence.log.stored_event import StoredEvent, StoredT

CHUNK_EVENTS = 100
"""Events that are decoded without a pause: one or two milliseconds."""


class Chunk(NamedTuple, Generic[StoredT]):
    """Some events, and the error that ended them, if any; no events and no error at the end."""

    events: list[StoredEvent[StoredT]]
    error: Exception | None


def chunk_of(following: Callable[[], StoredEvent[Any] | None]) -> Chunk[Any]:
    """Returns what the function returns until it returns `None`, or raises, or the chunk is full."""
    events: list[StoredEvent[Any]] = []
    try:
        while len(events) < CHUNK_EVENTS and (stored := following()) is not None:
            events.append(stored)
    except Exception as error:
        return Chunk(events, error)
    return Chunk(events, None)
