"""Checks of the events."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from peon.persistence.log.codec import UndecodableEvent
from peon.persistence.log.removed import SequenceRange, lost_ranges
from peon.persistence.operations.diagnosis.findings import Findings, failure, warning
from peon.persistence.operations.diagnosis.subject import Subject
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import MAXIMUM_SEQUENCE, events
from peon.persistence.schema.timestamps import format_timestamp

SHOWN = 5
"""Gaps, types and sequences that a reason lists."""

MINIMUM_LEFT = 10**12
"""Sequences that must be left. A log that counts from 1 never comes near; a number that was given by hand does."""

FUTURE = timedelta(hours=1)
"""How far the clocks of machines may differ."""

REPORTED_EVENTS = 1_000

_sequence = events.c.sequence


def sequences(subject: Subject) -> Findings:
    """The log begins with event 1 and has no gap, except where removed events are recorded."""
    with subject.reading() as connection:
        first, last, count = connection.execute(
            select(func.min(_sequence), func.max(_sequence), func.count()).select_from(events)
        ).one()
        if first is not None and first < 1:
            yield failure(f"the log has an event with the sequence {first}; the first one is 1", "restore a backup")
        if first is not None and (first, last) != (1, count):
            found = lost_ranges(connection)
            if found:
                shown = ", ".join(_text(gap) for gap in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
                missing = sum(gap.last - gap.first + 1 for gap in found)
                # A warning: an event that was removed as docs/how-to/remove-an-event.md says leaves the same gap.
                yield warning(
                    f"{counted(missing, 'event is', 'events are')} missing: {shown}",
                    "restore a backup, unless they were removed by hand or lost in a salvage",
                )
        assigned = subject.backend.last_assigned_sequence(connection)
        if assigned is not None and assigned > (last or 0):
            yield warning(
                f"the last events were removed: {assigned} was assigned, and the log ends with {last or 0}",
                "restore a backup, unless they were removed by hand",
            )
    return f"{counted(count, 'event')} without a gap"


def _text(gap: SequenceRange) -> str:
    return str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"


def sequence_range(subject: Subject) -> Findings:
    """Sequences are left. If none is, an append fails; SQLite itself would call that a full disk."""
    with subject.reading() as connection:
        used = max(subject.backend.last_assigned_sequence(connection) or 0, subject.end)
    left = MAXIMUM_SEQUENCE - used
    if left < MINIMUM_LEFT:
        kind = failure if left == 0 else warning
        yield kind(
            f"{counted(left, 'sequence is', 'sequences are')} left: an event, or the row of sqlite_sequence, was given "
            f"the number {used}",
            "restore a backup, or copy the events before it with copy_database",
        )
    return "enough are left"


def times(subject: Subject) -> Findings:
    """The clock of the machines that append was not set back, and is not ahead of this one's."""
    stored_at = events.c.stored_at
    ordered = select(_sequence, stored_at, func.lag(stored_at).over(order_by=_sequence).label("before")).subquery()
    with subject.reading() as connection:
        count, first = connection.execute(
            select(func.count(), func.min(ordered.c.sequence)).where(ordered.c.stored_at < ordered.c.before)
        ).one()
        limit = format_timestamp(datetime.now(UTC) + FUTURE)
        ahead, first_ahead = connection.execute(
            select(func.count(), func.min(_sequence)).where(stored_at > limit)
        ).one()
    if count:
        yield warning(
            f"the clock was set back {counted(count, 'time')}, first before event {first}",
            "choose events by sequence and not by time, and keep the clocks of machines that append with NTP",
        )
    if ahead:
        yield warning(
            f"{counted(ahead, 'event is', 'events are')} from the future, the first is {first_ahead}",
            "set the clocks of this machine and of those that append, with NTP",
        )
    return "in the order of the sequences"


def undecodable(subject: Subject) -> Findings:
    """Each event can be decoded by this version."""
    found: dict[tuple[str, bool], list[int]] = {}
    counts: dict[tuple[str, bool], int] = {}
    reasons: dict[tuple[str, bool], str] = {}
    store, end = subject.database.events, subject.end
    known = orchestration_codec.decoders
    for number, (sequence, event, _) in enumerate(store.stream(undecodable=UndecodableEvent)):
        if number % REPORTED_EVENTS == 0:
            subject.report(min(sequence, end), end)
        if isinstance(event, UndecodableEvent):
            key = (event.event_type, event.event_type in known)
            counts[key] = counts.get(key, 0) + 1
            reasons.setdefault(key, event.reason)
            if len(first := found.setdefault(key, [])) < SHOWN:
                first.append(sequence)
    for (name, is_known), first in found.items():
        total = counts[name, is_known]
        shown = ", ".join(map(str, first)) + (", …" if total > len(first) else "")
        what = f"{counted(total, 'event')} of the type {name or '(empty)'!r:.100} cannot be decoded ({shown})"
        kind = failure if is_known else warning
        yield kind(
            f"{what}: {reasons[name, is_known]}",
            "see docs/how-to/handle-undecodable-events.md, or restore a backup"
            if is_known
            else "if they are not events of the application, which this command does not know, install a newer version",
        )
    return "all"
