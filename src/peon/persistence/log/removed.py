"""The record of what compactions have merged and removed: it tells a gap that they left from a lost event."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select, update

from peon.persistence.backends.compiled import CompiledStatement, insert_into
from peon.persistence.schema import compaction, events, merged_events, removed_events

_removed = removed_events.c

_INSERT_RANGE = insert_into(removed_events)
_DELETE_RANGE = CompiledStatement(
    delete(removed_events).where(_removed.first_sequence == bindparam("of_first")), ["of_first"]
)
_INSERT_MERGED = insert_into(merged_events)
_DELETE_MERGED = CompiledStatement(
    delete(merged_events).where(merged_events.c.sequence == bindparam("of_event")), ["of_event"]
)


class SequenceRange(NamedTuple):
    """The sequences from `first` to `last`, including both."""

    first: int
    last: int


class RemovedEvents(NamedTuple):
    """A gap in the log that was left on purpose.

    Attributes:
        first: The first sequence of the gap.
        last: The last one. The events from `first` to `last` were removed.
        reason: Why: `compaction`.
        removed_at: When the last of them was removed, in UTC, as ISO 8601.
    """

    first: int
    last: int
    reason: str
    removed_at: str


def steps_of_compaction(connection: Connection) -> int:
    """Returns a number that grows with each step of a compaction."""
    steps: int = connection.scalars(select(compaction.c.steps)).one()
    return steps


def begin_step(connection: Connection, seen: int) -> bool:
    """Counts a step, and keeps other compactions waiting until the transaction ends.

    On PostgreSQL, this is what lets the transaction change the log.

    Returns:
        Whether there was no other step since `seen` was read.
    """
    counted = update(compaction).where(compaction.c.steps == seen).values(steps=compaction.c.steps + 1)
    return connection.execute(counted).rowcount == 1


def removed_ranges(connection: Connection) -> list[RemovedEvents]:
    """Returns the recorded gaps of the log, in order."""
    query = select(_removed.first_sequence, _removed.last_sequence, _removed.reason, _removed.removed_at)
    return [RemovedEvents(*row) for row in connection.execute(query.order_by(_removed.first_sequence))]


def number_removed(connection: Connection) -> int:
    """Returns how many events are in the recorded gaps of the log."""
    number: int = connection.scalars(
        select(func.coalesce(func.sum(_removed.last_sequence - _removed.first_sequence + 1), 0))
    ).one()
    return number


def lost_ranges(connection: Connection) -> list[SequenceRange]:
    """Returns the sequences from 1 to the end of the log that have neither an event nor a recorded gap.

    The database may be at an older revision, which records no gaps.
    """
    before = func.lag(events.c.sequence, 1, 0).over(order_by=events.c.sequence)
    of_log = events.c.sequence > 0  # others were inserted by hand
    places = select(events.c.sequence.label("sequence"), before.label("before")).where(of_log).subquery()
    query = select(places).where(places.c.sequence - places.c.before > 1).order_by(places.c.sequence)
    gaps = [SequenceRange(before + 1, sequence - 1) for sequence, before in connection.execute(query)]
    if not gaps or not connection.dialect.has_table(connection, removed_events.name):
        return gaps
    return _without(gaps, [SequenceRange(each.first, each.last) for each in removed_ranges(connection)])


def record_removed(connection: Connection, ranges: Sequence[SequenceRange], reason: str, moment: str) -> None:
    """Records ranges as removed, joined with the gaps beside them. They are in order, and not empty."""
    lowest, highest = ranges[0].first - 1, ranges[-1].last + 1
    columns = [_removed.first_sequence, _removed.last_sequence, _removed.reason, _removed.removed_at]
    below = select(*columns).where(_removed.first_sequence < lowest).order_by(_removed.first_sequence.desc()).limit(1)
    near = select(*columns).where(_removed.first_sequence.between(lowest, highest)).order_by(_removed.first_sequence)
    found = [RemovedEvents(*row) for query in (below, near) for row in connection.execute(query)]
    found = [each for each in found if each.last >= lowest and each.reason == reason]
    joined = _joined(sorted([*ranges, *(SequenceRange(each.first, each.last) for each in found)]))
    kept = {SequenceRange(each.first, each.last) for each in found}.intersection(joined)
    _DELETE_RANGE.run(connection, [(each.first,) for each in found if SequenceRange(each.first, each.last) not in kept])
    _INSERT_RANGE.run(connection, [(*each, reason, moment) for each in joined if each not in kept])


def record_merged(connection: Connection, merges: Sequence[Sequence[int]], moment: str) -> None:
    """Records for each list of sequences that the last one now holds the events of all."""
    lowest, highest = min(each[0] for each in merges), max(each[-1] for each in merges)
    columns = merged_events.c
    query = select(columns.sequence, columns.events).where(columns.sequence.between(lowest, highest))
    held = {row.sequence: row.events for row in connection.execute(query)}
    replaced: list[tuple[int]] = []
    for sequences in merges:
        count = 0
        for sequence in sequences:
            if (earlier := held.pop(sequence, None)) is not None:
                replaced.append((sequence,))
            count += earlier or 1
        held[sequences[-1]] = count  # the next list may begin with it
    ends = dict.fromkeys(sequences[-1] for sequences in merges)
    _DELETE_MERGED.run(connection, replaced)
    _INSERT_MERGED.run(connection, [(end, held[end], moment) for end in ends if end in held])


def were_compacted(connection: Connection, first: int, last: int) -> bool:
    """Returns whether one of the events from `first` to `last` was merged into another, or holds others."""
    merged = select(merged_events.c.sequence).where(merged_events.c.sequence.between(first, last)).limit(1)
    if connection.execute(merged).first() is not None:
        return True
    gap = select(_removed.last_sequence).where(_removed.first_sequence <= last)
    end = connection.scalars(gap.order_by(_removed.first_sequence.desc()).limit(1)).first()
    return end is not None and end >= first


def as_ranges(sequences: Iterable[int]) -> list[SequenceRange]:
    """Returns the ranges of adjacent sequences, in order."""
    ranges: list[SequenceRange] = []
    first = last = None
    for sequence in sorted(sequences):
        if first is None or last is None:
            first = sequence
        elif sequence != last + 1:
            ranges.append(SequenceRange(first, last))
            first = sequence
        last = sequence
    if first is not None and last is not None:
        ranges.append(SequenceRange(first, last))
    return ranges


def _joined(ranges: Iterable[SequenceRange]) -> list[SequenceRange]:
    joined: list[SequenceRange] = []
    for each in ranges:
        if joined and each.first <= joined[-1].last + 1:
            joined[-1] = SequenceRange(joined[-1].first, max(joined[-1].last, each.last))
        else:
            joined.append(each)
    return joined


def _without(ranges: Iterable[SequenceRange], removed: Sequence[SequenceRange]) -> list[SequenceRange]:
    """Returns what is left of the ranges; both lists are in order, and no two ranges of a list overlap."""
    left: list[SequenceRange] = []
    place = 0
    for first, last in ranges:
        while place < len(removed) and removed[place].last < first:
            place += 1
        at = place
        while at < len(removed) and removed[at].first <= last:
            if removed[at].first > first:
                left.append(SequenceRange(first, removed[at].first - 1))
            first = removed[at].last + 1
            at += 1
        if first <= last:
            left.append(SequenceRange(first, last))
    return left
