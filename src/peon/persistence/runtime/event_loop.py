"""Pauses in which the other tasks of an event loop have their turn."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sqlalchemy.engine.interfaces import Dialect

ItemT = TypeVar("ItemT")

PAUSE_ITEMS = 100
"""Items between two pauses: one or two milliseconds of work."""


def with_pauses(items: Iterable[ItemT], dialect: Dialect) -> Iterable[ItemT]:
    """Returns the items: as they are for threads, which the system interrupts, and with pauses for an event loop."""
    return _with_pauses(items) if dialect.is_async else items


def _with_pauses(items: Iterable[ItemT]) -> Iterator[ItemT]:
    from asyncio import sleep  # none of this is needed by those who use threads

    from sqlalchemy.util import await_only

    for number, item in enumerate(items, 1):
        yield item
        if number % PAUSE_ITEMS == 0:
            await_only(sleep(0))


def pause(seconds: float, dialect: Dialect) -> None:
    """Waits: a thread itself, a task without holding up the others."""
    if not dialect.is_async:
        time.sleep(seconds)
        return
    from asyncio import sleep

    from sqlalchemy.util import await_only

    await_only(sleep(seconds))
