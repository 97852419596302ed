"""Compares the state of a database with limits."""

from collections.abc import Iterator
from typing import NamedTuple

from peon.cli.status_document import Check, Status
from peon.persistence.runtime.counts import counted

BYTES_A_MEGABYTE = 1_000_000


class Limits(NamedTuple):
    """What a health probe accepts.

    Attributes:
        lag: Events that a projection or a subscription may be behind the log.
        wal_megabytes: The size of the -wal file.
        problems: Events that a projection could not apply.
    """

    lag: int
    wal_megabytes: int
    problems: int


def checks_of(status: Status, limits: Limits) -> list[Check]:
    """Returns each value that has a limit."""
    return [*_checks(status, limits)]


def _checks(status: Status, limits: Limits) -> Iterator[Check]:
    newest = status.newest_revision
    yield Check(name="revision", found=status.revision or "base", limit=newest, ok=status.revision == newest)
    size = status.storage.write_ahead_log
    if size is not None:
        megabytes = size / BYTES_A_MEGABYTE
        limit = limits.wal_megabytes
        yield Check(name="-wal file", found=f"{megabytes:,.0f} MB", limit=f"{limit:,} MB", ok=megabytes <= limit)
    for projection in status.projections:
        yield _lag(f"projection {projection.name}", projection.lag, limits)
        found, limit = projection.problems, limits.problems
        name = f"problems of {projection.name}"
        yield Check(name=name, found=counted(found, "event"), limit=counted(limit, "event"), ok=found <= limit)
    for subscription in status.subscriptions:
        yield _lag(f"subscription {subscription.name}", subscription.lag, limits)


def _lag(name: str, lag: int, limits: Limits) -> Check:
    found = f"{counted(lag, 'event')} behind" if lag >= 0 else f"{counted(-lag, 'event')} beyond the end of the log"
    return Check(name=name, found=found, limit=f"{counted(limits.lag, 'event')} behind", ok=0 <= lag <= limits.lag)
