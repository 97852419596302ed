"""How a rebuild works on side tables: alone, and in transactions that are short."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from peon.persistence.backends import backend_of
from peon.persistence.backends.side_tables import SideTables
from peon.persistence.projections.base import Projection
from peon.persistence.runtime.event_loop import pause

STEP_SECONDS = 0.1
"""After this long, a transaction that copies or deletes rows ends, so that appends get their turn. With its commit, it
takes twice as long at most."""

FLUSH_SECONDS = 0.5
"""What was committed is written to the disk so often. Otherwise all of it is at the end, and an append waits for that:
1.1 s after a rebuild with a million messages, instead of 0.3 s."""

POLL_SECONDS = 0.05
"""Between two attempts to get the lock of another rebuild, which holds it for minutes if there are many rows."""


@contextmanager
def alone(connection: Connection, projection: Projection) -> Iterator[None]:
    """Keeps others that use the side tables of the projection waiting; begins outside a transaction."""
    lock = backend_of(connection).consumer_lock(connection, f"rebuild of the projection {projection.name}")
    connection.commit()
    while not lock.acquire():
        pause(POLL_SECONDS, connection.dialect)
    try:
        yield
    finally:
        lock.release()


def in_steps(connection: Connection, steps: Iterator[None], side: SideTables) -> None:
    """Performs steps, in transactions that are short."""
    backend = backend_of(connection)
    limit = STEP_SECONDS
    flushed = time.monotonic()
    backend.begin_writing(connection)
    began = time.monotonic()
    for _ in steps:
        if time.monotonic() - began > limit:
            connection.commit()
            # On a slow disk, the commit takes longer than the statements did.
            limit = min(STEP_SECONDS, limit * 2 * STEP_SECONDS / (time.monotonic() - began))
            if time.monotonic() - flushed > FLUSH_SECONDS:
                side.flush(connection)
                flushed = time.monotonic()
            backend.begin_writing(connection)
            began = time.monotonic()
    connection.commit()
    side.flush(connection)


def remove_side_tables(connection: Connection, side: SideTables) -> None:
    """Removes the side tables, whatever is in them."""
    with side.writing(connection):
        in_steps(connection, side.empty(connection), side)
