"""Waiting and pausing in code that runs in a thread or, inside a greenlet, in an event loop."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sqlalchemy.engine.interfaces import Dialect

from peon.persistence.runtime.sqlalchemy_internals import await_in_greenlet

ItemT = TypeVar("ItemT")

PAUSE_ITEMS = 100
"""Items between two pauses: processing them takes one or two milliseconds."""


def with_pauses(items: Iterable[ItemT], dialect: Dialect) -> Iterable[ItemT]:
    """Returns the items; in an event loop, other tasks run after every `PAUSE_ITEMS` of them."""
    return _with_pauses(items) if dialect.is_async else items


def _with_pauses(items: Iterable[ItemT]) -> Iterator[ItemT]:
    for number, item in enumerate(items, 1):
        yield item
        if number % PAUSE_ITEMS == 0:
            sleep_in_event_loop(0)


def pause(seconds: float, dialect: Dialect) -> None:
    """Waits without blocking the event loop, if the code runs in one."""
    if dialect.is_async:
        sleep_in_event_loop(seconds)
    else:
        time.sleep(seconds)


def sleep_in_event_loop(seconds: float) -> None:
    """Waits in a greenlet, while other tasks of the event loop run."""
    from asyncio import sleep  # threads do not need asyncio, which takes long to import

    await_in_greenlet(sleep(seconds))
