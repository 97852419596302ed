"""Gives space back to the file system, and says before what that takes."""

from typing import NamedTuple

from sqlalchemy import Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.projections.replay import Progress

BYTES_A_SECOND = 50_000_000
"""What a full vacuum writes in a second on a slow disk."""


class Vacuum(NamedTuple):
    """What a vacuum takes, and what it has given back.

    Attributes:
        before: The size of the database before, in bytes.
        after: Its size now, in bytes.
        free: The bytes that held no rows before, as far as it is known: PostgreSQL does not tell, and has 0.
        needed: The bytes that it needs on the disk meanwhile, at most.
        seconds: An estimate of how long it takes, on a slow disk.
        possible: Whether it can give anything back. On an SQLite file of an earlier version, only `full=True` can.
    """

    before: int
    after: int
    free: int
    needed: int
    seconds: float
    possible: bool


def vacuum(
    engine: Engine, driver_errors: DriverErrors, progress: Progress | None, *, full: bool, dry_run: bool
) -> Vacuum:
    backend = backend_of(engine)
    with driver_errors:
        space = backend.space_of(engine)
        after = space.total
        moved = space.total - space.free if full else space.free
        if not dry_run:
            backend.give_back_space(engine, progress or (lambda _done, _total: None), full=full)
            after = backend.space_of(engine).total
    needed = 2 * moved if full else moved
    return Vacuum(space.total, after, space.free, needed, moved / BYTES_A_SECOND, full or space.can_shrink)
