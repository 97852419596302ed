"""Walks through the index of tags, from one end of a range of the log to the other."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, tuple_

from peon.persistence.backends.compiled import MAXIMUM_KEYS
from peon.persistence.log.query import Clause
from peon.persistence.schema import event_tags, tags

RANGE_ENTRIES = 500
"""Entries of one tag that are read at once."""

# The two columns are compared as one. With `tag_id = …`, PostgreSQL sorts the rest of the tag for each page.
_ENTRIES = select(event_tags.c.tag_id, event_tags.c.sequence).limit(bindparam("entries"))
_ENTRY = tuple_(event_tags.c.tag_id, event_tags.c.sequence)
_GIVEN = tuple_(bindparam("tag"), bindparam("sequence"))

OLDEST_FIRST, NEWEST_FIRST = 1, -1
"""The directions of a walk through the index. Multiplied by its direction, the sequences of each walk ascend."""

_NEXT = {
    OLDEST_FIRST: _ENTRIES.where(_ENTRY > _GIVEN).order_by(event_tags.c.tag_id, event_tags.c.sequence),
    NEWEST_FIRST: _ENTRIES.where(_ENTRY < _GIVEN).order_by(event_tags.c.tag_id.desc(), event_tags.c.sequence.desc()),
}


class TakesLong(Exception):  # noqa: N818
    """Answering would hold the write lock for too long."""


class Walk:
    """Finds the sequences of the events that meet all clauses of at least one item.

    Only the items that are furthest behind read on, and what they find is kept. So an item with many events is not read
    far ahead, and an item with few is not read again for each page.

    Args:
        after: The sequence before the first one of the range.
        until: The last sequence of the range.
        direction: By which all sequences are multiplied, those that are given and those that are returned.
        rounds: The number of ranges of an item that may be read before it raises `TakesLong`.

    Attributes:
        until: The last sequence of the range.
    """

    def __init__(
        self,
        connection: Connection,
        items: Sequence[Sequence[Clause]],
        after: int,
        until: int,
        direction: int = OLDEST_FIRST,
        rounds: float = inf,
    ) -> None:
        self.until = until
        self._rounds = rounds
        known = _identifiers(connection, items)
        of_items = [
            [[known[clause.tag, key] for key in clause.keys if (clause.tag, key) in known] for clause in item]
            for item in items
        ]
        self._found: list[int] = []
        self._items = [_ItemWalk(of_item, after, until, direction) for of_item in of_items if all(of_item)]

    def first(self, connection: Connection, after: int, limit: int) -> list[int]:
        """Returns the first sequences of the range that are above `after`; each call gives a higher one, or the same.

        Raises:
            TakesLong: See `rounds`.
        """
        while True:
            del self._found[: bisect_right(self._found, after)]
            known = min((item.after for item in self._items), default=self.until)
            count = bisect_right(self._found, known)
            if known >= self.until or count >= limit:
                return self._found[: min(count, limit)]
            found: list[int] = []
            for item in self._items:
                if item.after == known:
                    self._rounds -= 1
                    if self._rounds < 0:
                        raise TakesLong
                    found += item.read_on(connection)
            if found:
                self._found = sorted({*self._found, *found})


class _ItemWalk:
    """The walk of one item.

    The entries of its clauses are read side by side, and each read skips to the place where the other clauses have
    their next entry. With one tag of many events and one of few, it only reads entries near the few.

    Args:
        clauses: For each clause the identifiers of its tags, of which an event must have one.

    Attributes:
        after: The sequence up to which all events are found.
    """

    def __init__(self, clauses: Sequence[Sequence[int]], after: int, until: int, direction: int) -> None:
        self.after = after
        self._clauses = clauses
        self._until = until
        self._direction = direction

    def read_on(self, connection: Connection) -> set[int]:
        """Reads the next entries of each clause, and returns the sequences of the events that meet all clauses."""
        ranges = [self._range(connection, identifiers) for identifiers in self._clauses]
        known = min(each.until for each in ranges)
        self.after = max(each.next_above(known) for each in ranges) - 1
        return set(ranges[0].sequences).intersection(*(each.sequences for each in ranges[1:]))

    def _range(self, connection: Connection, identifiers: Sequence[int]) -> "_Range":
        """Returns the next sequences of events that have one of the tags."""
        found: list[int] = []
        complete = self._until
        for identifier in identifiers:
            given = {"tag": identifier, "sequence": self._direction * self.after, "entries": RANGE_ENTRIES}
            rows = connection.execute(_NEXT[self._direction], given).all()
            sequences = [self._direction * sequence for tag, sequence in rows if tag == identifier]
            sequences = [sequence for sequence in sequences if sequence <= self._until]
            if len(sequences) == RANGE_ENTRIES:
                complete = min(complete, sequences[-1])
            found += sequences
        return _Range([sequence for sequence in sorted(found) if sequence <= complete], complete)


class _Range(NamedTuple):
    """All sequences up to `until`, in order."""

    sequences: list[int]
    until: int

    def next_above(self, known: int) -> int:
        """Returns the first sequence above `known`, or the lowest one that it can have."""
        place = bisect_right(self.sequences, known)
        return self.sequences[place] if place < len(self.sequences) else self.until + 1


def _identifiers(connection: Connection, items: Sequence[Sequence[Clause]]) -> dict[tuple[str, str], int]:
    """Returns the identifiers of the tags; those that no event has are missing."""
    keys: dict[str, set[str]] = {}
    for item in items:
        for clause in item:
            keys.setdefault(clause.tag, set()).update(clause.keys)
    found: dict[tuple[str, str], int] = {}
    for name, values in keys.items():
        for some in _parts(sorted(values)):
            query = select(tags.c.value, tags.c.id).where(tags.c.name == name, tags.c.value.in_(some))
            found.update({(name, value): identifier for value, identifier in connection.execute(query)})
    return found


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), MAXIMUM_KEYS):
        yield values[start : start + MAXIMUM_KEYS]
