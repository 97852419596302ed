"""Pauses of Python's garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine.interfaces import Dialect


@contextmanager
def garbage_collection_paused(dialect: Dialect) -> Iterator[None]:
    """Pauses the collector while a long list of objects is built, all of which are still in use.

    The collector would search them again and again in vain: that made a replay take 3.6 times as long, and a
    snapshot 1.6 times. In an event loop the collector keeps running: a pause would last over an `await`, and so
    for every other task of the application.
    """
    if dialect.is_async or not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()
