"""The index of tags: which events have a field with a value.

It is derived from the log when a query first asks for a field. Appends do not write it, so it is usually behind the
log; queries read the events above its position from the log itself.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from math import inf
from typing import NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, tuple_, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import MAXIMUM_KEYS, CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import StoreUnavailable
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.query import TYPE, EventQuery, key_of, keys_in
from peon.persistence.log.removed import as_ranges
from peon.persistence.schema import LAST_SEQUENCE, event_tags, tag_positions, tags

TAIL_EVENTS = 1_000
"""Up to this many events above the position of the index are read from the log instead of indexed, in about 2 ms."""

TAIL_CHARACTERS = 1_000_000
"""Payload text in those events above which they are indexed after all: reading it would take too long."""

PAGES_A_COMMIT = 10
"""Pages of the log that are indexed in one transaction. Appends wait for it, for a tenth of a second."""

PAGE_MATCHES = 250
"""Matching events that a query fetches at once."""

RANGE_ENTRIES = 500
"""Entries of one tag that are read at once."""

LOCKED_ROUNDS = 10
"""Ranges of each tag that may be read while the write lock is held, in about 10 ms."""

# Each row looks up its tag by itself. With a list of values, PostgreSQL may read all tags of the name instead.
_INSERT_EVENT_TAG = CompiledStatement(
    insert(event_tags).from_select(
        [event_tags.c.tag_id, event_tags.c.sequence],
        select(tags.c.id, bindparam("of_event", type_=event_tags.c.sequence.type)).where(
            tags.c.name == bindparam("of_name"), tags.c.value == bindparam("of_value")
        ),
    ),
    ["of_event", "of_name", "of_value"],
)

_DELETE_EVENT_TAGS = CompiledStatement(
    delete(event_tags).where(
        event_tags.c.tag_id
        == select(tags.c.id)
        .where(tags.c.name == bindparam("of_name"), tags.c.value == bindparam("of_value"))
        .scalar_subquery(),
        event_tags.c.sequence.between(bindparam("first"), bindparam("last")),
    ),
    ["of_name", "of_value", "first", "last"],
)

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


class TagIndex:
    """The index of tags in one database."""

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._add_tag = self._backend.insert(tags).on_conflict_do_nothing()
        self._add_position = self._backend.insert(tag_positions).on_conflict_do_nothing()
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)

    @cached_property
    def _log_backwards(self) -> LogPages:
        return LogPages(self._engine, self._driver_errors, newest_first=True)

    def first_match(
        self, connection: Connection, query: EventQuery, after: int, last: int, *, may_take_long: bool
    ) -> int | None:
        """Returns the lowest sequence above `after` of an event that matches, `None` if there is none.

        Args:
            last: The end of the log.
            may_take_long: Read any amount of the index.

        Raises:
            TakesLong: Too much of the log is not indexed yet, or too much of the index would have to be read.
        """
        wanted = query.wanted()
        if after >= last or not all(wanted.values()):
            return None
        if last - after <= TAIL_EVENTS or not wanted:
            with suppress(TakesLong):
                return self._first_in_log(connection, wanted, after)
        indexed = self._position(connection, wanted)
        if last - max(indexed, after) > TAIL_EVENTS:
            raise TakesLong
        found = self._first_in_index(connection, wanted, after, indexed, inf if may_take_long else LOCKED_ROUNDS)
        return self._first_in_log(connection, wanted, max(indexed, after)) if found is None else found

    def holds_until(self, query: EventQuery, after: int) -> int:
        """Indexes the tags of the query, and returns a sequence up to which no event above `after` matches."""
        wanted = query.wanted()
        self.catch_up(query)
        with self._driver_errors, self._reads.connect() as connection:
            indexed = self._position(connection, wanted)
            found = self._first_in_index(connection, wanted, after, indexed, inf)
        return indexed if found is None else found - 1

    def _first_in_index(
        self, connection: Connection, wanted: dict[str, list[str]], after: int, indexed: int, rounds: float
    ) -> int | None:
        while after < indexed:
            found = self._indexed(connection, wanted, after, indexed, 1, rounds)
            if any(_matches(row, wanted) for row in self._log.read_rows(connection, found)):
                return found[0]
            after = found[0] if found else indexed  # the event was removed or changed by hand
        return None

    def _first_in_log(self, connection: Connection, wanted: dict[str, list[str]], after: int) -> int | None:
        characters = 0
        while page := self._log.read_page(connection, after):
            for row in page:
                if _matches(row, wanted):
                    return row[0]
            characters += sum(len(payload or "") for _, _, payload, _ in page)
            if characters > TAIL_CHARACTERS:
                raise TakesLong
            after = page[-1][0]
        return None

    def pages(self, query: EventQuery, after: int, limit: int | None) -> Iterator[list[LogRow]]:
        """Yields the rows that match. See `LogPages.read`. Fills the index first if it is far behind."""
        wanted = query.wanted()
        remaining = limit
        if not all(wanted.values()):
            return
        with suppress(StoreUnavailable):  # a database that cannot be written now is read without it
            self.catch_up(query, after, tail=TAIL_EVENTS, wait=False)
        while remaining is None or remaining > 0:
            with self._driver_errors, self._reads.connect() as connection:
                indexed = self._position(connection, wanted)
                if after < indexed:
                    sequences = self._indexed(connection, wanted, after, indexed, PAGE_MATCHES)
                    page = self._log.read_rows(connection, sequences)
                    if 0 < len(page) < len(sequences):  # large events ended the page early
                        after = page[-1][0]
                    else:
                        after = sequences[-1] if len(sequences) == PAGE_MATCHES else indexed
                else:
                    read = self._log.read_page(connection, after)
                    if not read:
                        return
                    page = [row for row in read if _matches(row, wanted)]
                    after = read[-1][0]
            page = page[:remaining]
            if remaining is not None:
                remaining -= len(page)
            if page:
                yield page

    def pages_backwards(self, query: EventQuery, after: int, limit: int | None, before: int) -> Iterator[list[LogRow]]:
        """Yields the rows above `after` and below `before` that match, newest first. See `pages`."""
        wanted = query.wanted()
        remaining = inf if limit is None else limit
        if not all(wanted.values()):
            return
        with suppress(StoreUnavailable):
            self.catch_up(query, after, tail=TAIL_EVENTS, wait=False)
        while remaining > 0 and before - 1 > after:
            with self._driver_errors, self._reads.connect() as connection:
                indexed = max(self._position(connection, wanted), after)
                if before - 1 > indexed:
                    read = self._log_backwards.read_page(connection, indexed, before)
                    page = [row for row in read if _matches(row, wanted)]
                    before = read[-1][0] if read else indexed + 1
                else:
                    entries = int(min(PAGE_MATCHES, remaining))
                    walk = self._indexed(connection, wanted, -before, -after - 1, entries, direction=NEWEST_FIRST)
                    sequences = [-sequence for sequence in walk]
                    page = self._log_backwards.read_rows(connection, sequences)
                    if 0 < len(page) < len(sequences):  # large events ended the page early
                        before = page[-1][0]
                    else:
                        before = sequences[-1] if len(sequences) == entries else after + 1
            page = page[: int(min(len(page), remaining))]
            remaining -= len(page)
            if page:
                yield page

    def catch_up(self, query: EventQuery, after: int = 0, *, tail: int = 0, wait: bool = True) -> None:
        """Indexes the tags of the query up to the present end of the log, in transactions of its own.

        Args:
            after: The query does not ask for the part of the log up to this sequence.
            tail: The number of events that may stay unindexed.
            wait: Wait for locks that others hold; otherwise raise `StoreUnavailable`.
        """
        names = query.wanted()
        if not names:
            return
        with self._driver_errors:
            with self._reads.connect() as connection:
                end: int = connection.scalars(LAST_SEQUENCE).one()
                position = self._position(connection, names)
            if end - after <= tail:
                return
            while end - position > tail:
                with self._transaction(wait=wait) as connection:
                    self.extend(connection, names, PAGES_A_COMMIT)
                    position = self._position(connection, names)

    def _transaction(self, *, wait: bool) -> AbstractContextManager[Connection]:
        if wait:
            return self._backend.current_reads(self._engine).begin()
        return self._backend.transaction_without_waiting(self._engine)

    def extend(self, connection: Connection, names: Collection[str], pages: int | None = None) -> None:
        """Indexes tags in the transaction of the connection: a number of pages of the log, or all of it."""
        self._backend.begin_writing(connection)
        connection.execute(self._add_position, [{"name": name, "sequence": 0} for name in sorted(names)])
        while True:
            rows = connection.execute(
                select(tag_positions.c.name, tag_positions.c.sequence)
                .where(tag_positions.c.name.in_(list(names)))
                .order_by(tag_positions.c.name)
                .with_for_update()  # two transactions that do the same take turns
            ).all()
            positions: dict[str, int] = {row.name: row.sequence for row in rows}
            start = min(positions.values())
            lagging = [name for name, position in positions.items() if position == start]
            until = min((position for position in positions.values() if position > start), default=None)
            end = self._index_pages(connection, lagging, start, until, pages)
            if end > start:
                connection.execute(update(tag_positions).where(tag_positions.c.name.in_(lagging)).values(sequence=end))
            if pages is not None or (end == start and until is None):
                return

    def _index_pages(
        self, connection: Connection, names: Sequence[str], start: int, until: int | None, pages: int | None
    ) -> int:
        after = start
        done = 0
        while pages is None or done < pages:
            page = self._log.read_page(connection, after)
            if until is not None:
                page = [row for row in page if row[0] <= until]
            if not page:  # the events up to `until` were removed by hand
                return after if until is None else until
            self._index(connection, names, page)
            after = page[-1][0]
            done += 1
        return after

    def _index(self, connection: Connection, names: Sequence[str], page: list[LogRow]) -> None:
        found = sorted((key, row[0]) for row in page for key in keys_in(row[1], row[2], names).items())
        if not found:
            return
        keys = [{"name": name, "value": value} for name, value in sorted({key for key, _ in found})]
        connection.execute(self._add_tag, keys)
        _INSERT_EVENT_TAG.run(connection, [(sequence, name, value) for (name, value), sequence in found])

    def remove(self, connection: Connection, removed: Iterable[tuple[Sequence[int], str, str]]) -> None:
        """Removes the entries of events that the transaction removes from the log.

        Args:
            removed: Sequences of events, and the type and payload of an event that has the same tags as they.
        """
        names = connection.scalars(select(tag_positions.c.name)).all()
        if not names:
            return
        found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for sequences, event_type, payload in removed:
            for key in keys_in(event_type, payload, names).items():
                found[key] += sequences
        _DELETE_EVENT_TAGS.run(
            connection, [(*key, *each) for key, sequences in found.items() for each in as_ranges(sequences)]
        )

    def _identifiers(self, connection: Connection, name: str, values: Sequence[str]) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for start in range(0, len(values), MAXIMUM_KEYS):
            query = select(tags.c.value, tags.c.id).where(
                tags.c.name == name, tags.c.value.in_(values[start : start + MAXIMUM_KEYS])
            )
            found += [(value, identifier) for value, identifier in connection.execute(query)]
        return found

    def _position(self, connection: Connection, names: Collection[str]) -> int:
        """Returns the sequence up to which all the tags are indexed."""
        query = select(tag_positions.c.sequence).where(tag_positions.c.name.in_(list(names)))
        found = connection.scalars(query).all()
        return min(found) if len(found) == len(names) and found else 0

    def _indexed(
        self,
        connection: Connection,
        wanted: dict[str, list[str]],
        after: int,
        until: int,
        limit: int,
        rounds: float = inf,
        direction: int = OLDEST_FIRST,
    ) -> list[int]:
        """Returns the first sequences of the range whose events have a wanted value of every tag.

        The entries of all tags are read side by side, and each read skips to the place where the other tags have
        their next entry. With one tag of many events and one of few, it only reads entries near the few.

        Args:
            rounds: The number of reads after which it raises `TakesLong`.
            direction: By which all sequences are multiplied, those that are given and those that are returned.
        """
        identifiers = [
            [identifier for _, identifier in self._identifiers(connection, name, keys)] for name, keys in wanted.items()
        ]
        if not all(identifiers):
            return []
        found: list[int] = []
        while after < until and len(found) < limit:
            rounds -= 1
            if rounds < 0:
                raise TakesLong
            ranges = [self._range(connection, each, after, until, direction) for each in identifiers]
            found += sorted(set(ranges[0].sequences).intersection(*(each.sequences for each in ranges[1:])))
            known = min(each.until for each in ranges)
            after = max(each.next_above(known) for each in ranges) - 1
        return found[:limit]

    def _range(
        self, connection: Connection, identifiers: Sequence[int], after: int, until: int, direction: int
    ) -> "_Range":
        """Returns the next sequences of events that have one of the tags, which are given by their identifiers."""
        found: list[int] = []
        complete = until
        for identifier in identifiers:
            given = {"tag": identifier, "sequence": direction * after, "entries": RANGE_ENTRIES}
            rows = connection.execute(_NEXT[direction], given).all()
            sequences = [direction * sequence for tag, sequence in rows if tag == identifier]
            sequences = [sequence for sequence in sequences if sequence <= until]
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


class TakesLong(Exception):  # noqa: N818
    """Answering would hold the write lock for too long."""


def _matches(row: LogRow, wanted: dict[str, list[str]]) -> bool:
    _, event_type, payload, _ = row
    if not wanted:
        return True
    if TYPE in wanted and event_type not in wanted[TYPE] and key_of(str(event_type)) not in wanted[TYPE]:
        return False  # the common case, without parsing the payload
    keys = keys_in(event_type, payload, wanted)
    return all(keys.get(name) in values for name, values in wanted.items())
