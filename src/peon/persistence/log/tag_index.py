"""The index of tags: which events have a field with a value.

It is derived from the log, field by field, when a query first asks for a field; appends never write it. So it is
behind, mostly, and what is above its position is read from the log itself.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple

from sqlalchemy import Connection, Engine, bindparam, insert, select, tuple_, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import MAXIMUM_KEYS, CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import StoreUnavailable
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.query import TYPE, EventQuery, key_of, keys_in
from peon.persistence.schema import LAST_SEQUENCE, event_tags, tag_positions, tags

TAIL = 1_000
"""Events above the position of the index that are read from the log rather than indexed: in 2 ms, unless large."""

TAIL_CHARACTERS = 1_000_000
"""Payload text in those events above which they are indexed after all."""

PAGES_A_COMMIT = 10
"""Pages of the log that are indexed in one transaction: appends wait for a tenth of a second."""

PAGE_MATCHES = 250
"""Events that are fetched at once by a query."""

RANGE = 500
"""Entries of one tag that are read at once."""

ROUNDS = 10
"""Such ranges of each tag that are read under the writer's lock: in 10 ms."""

# Each looks up its tag: PostgreSQL may take a list of values for a reason to read all tags of the name.
_INSERT_EVENT_TAG = CompiledStatement(
    insert(event_tags).from_select(
        [event_tags.c.tag_id, event_tags.c.sequence],
        select(tags.c.id, bindparam("of_event", type_=event_tags.c.sequence.type)).where(
            tags.c.name == bindparam("of_name"), tags.c.value == bindparam("of_value")
        ),
    ),
    ["of_event", "of_name", "of_value"],
)

# Both columns compared as one: by `tag_id = …`, PostgreSQL would rather sort all that is left of a tag, for each page.
_NEXT = (
    select(event_tags.c.tag_id, event_tags.c.sequence)
    .where(tuple_(event_tags.c.tag_id, event_tags.c.sequence) > tuple_(bindparam("tag"), bindparam("after")))
    .order_by(event_tags.c.tag_id, event_tags.c.sequence)
    .limit(bindparam("entries"))
)


class TagIndex:
    """The index of one database."""

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._add_tag = self._backend.insert(tags).on_conflict_do_nothing()
        self._add_position = self._backend.insert(tag_positions).on_conflict_do_nothing()
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)

    def first_match(
        self, connection: Connection, query: EventQuery, after: int, last: int, *, may_take_long: bool
    ) -> int | None:
        """Returns the lowest sequence above `after` of an event that matches, `None` where there is none.

        Args:
            last: The end of the log.
            may_take_long: Read any amount of the index.

        Raises:
            TakesLong: Too much of the log is not indexed yet, or of the index to be read.
        """
        wanted = query.wanted()
        if after >= last or not all(wanted.values()):
            return None
        if last - after <= TAIL or not wanted:
            with suppress(TakesLong):
                return self._first_in_log(connection, wanted, after)
        indexed = self._position(connection, wanted)
        if last - max(indexed, after) > TAIL:
            raise TakesLong
        found = self._first_in_index(connection, wanted, after, indexed, inf if may_take_long else ROUNDS)
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
            after = found[0] if found else indexed  # it was removed, or mended, by hand
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
        """Yields the rows that match, as `LogPages.read` does; brings the index up first, where that is far behind."""
        wanted = query.wanted()
        remaining = limit
        if not all(wanted.values()):
            return
        with suppress(StoreUnavailable):  # one that cannot be written now, or ever, can be read without
            self.catch_up(query, after, tail=TAIL, wait=False)
        while remaining is None or remaining > 0:
            with self._driver_errors, self._reads.connect() as connection:
                indexed = self._position(connection, wanted)
                if after < indexed:
                    sequences = self._indexed(connection, wanted, after, indexed, PAGE_MATCHES)
                    page = self._log.read_rows(connection, sequences)
                    if 0 < len(page) < len(sequences):  # large events end a page early
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

    def catch_up(self, query: EventQuery, after: int = 0, *, tail: int = 0, wait: bool = True) -> None:
        """Indexes the tags of the query to the present end of the log, in transactions of its own.

        Args:
            after: The part of the log up to this sequence is not asked for.
            tail: So many events need not be indexed.
            wait: For the locks of others; otherwise it raises `StoreUnavailable` where they are held.
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
                transaction = self._engine.begin() if wait else self._backend.transaction_without_waiting(self._engine)
                with transaction as connection:
                    self.extend(connection, names, PAGES_A_COMMIT)
                    position = self._position(connection, names)

    def extend(self, connection: Connection, names: Collection[str], pages: int | None = None) -> None:
        """Indexes tags in the transaction of the connection, so many pages of the log, or all."""
        self._backend.begin_writing(connection)
        connection.execute(self._add_position, [{"name": name, "sequence": 0} for name in sorted(names)])
        while True:
            rows = connection.execute(
                select(tag_positions.c.name, tag_positions.c.sequence)
                .where(tag_positions.c.name.in_(list(names)))
                .order_by(tag_positions.c.name)
                .with_for_update()  # two that do the same take turns
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
            if not page:  # none up to there: they were removed by hand
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

    def _identifiers(self, connection: Connection, name: str, values: Sequence[str]) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for start in range(0, len(values), MAXIMUM_KEYS):
            query = select(tags.c.value, tags.c.id).where(
                tags.c.name == name, tags.c.value.in_(values[start : start + MAXIMUM_KEYS])
            )
            found += [(value, identifier) for value, identifier in connection.execute(query)]
        return found

    def _position(self, connection: Connection, names: Collection[str]) -> int:
        """Returns up to which sequence all the tags are indexed."""
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
    ) -> list[int]:
        """Returns the first sequences of the range that the index has for what is wanted.

        The tags are read side by side, and each goes on where the others may have something in common with it: of a
        tag of many events and one of few, only entries about the few are read.

        Args:
            rounds: Raises `TakesLong` after so many.
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
            ranges = [self._range(connection, each, after, until) for each in identifiers]
            found += sorted(set(ranges[0].sequences).intersection(*(each.sequences for each in ranges[1:])))
            known = min(each.until for each in ranges)
            after = max(each.next_above(known) for each in ranges) - 1
        return found[:limit]

    def _range(self, connection: Connection, identifiers: Sequence[int], after: int, until: int) -> "_Range":
        """Returns the next sequences of events that have one of the tags."""
        found: list[int] = []
        complete = until
        for identifier in identifiers:
            rows = connection.execute(_NEXT, {"tag": identifier, "after": after, "entries": RANGE}).all()
            sequences = [sequence for tag, sequence in rows if tag == identifier and sequence <= until]
            if len(sequences) == RANGE:
                complete = min(complete, sequences[-1])
            found += sequences
        return _Range([sequence for sequence in sorted(found) if sequence <= complete], complete)


class _Range(NamedTuple):
    """Sequences, in order, that are all there are up to `until`."""

    sequences: list[int]
    until: int

    def next_above(self, known: int) -> int:
        """Returns the first sequence above that one, or where it may be at the earliest."""
        place = bisect_right(self.sequences, known)
        return self.sequences[place] if place < len(self.sequences) else self.until + 1


class TakesLong(Exception):  # noqa: N818
    """To answer takes longer than others should wait for the writer's lock."""


def _matches(row: LogRow, wanted: dict[str, list[str]]) -> bool:
    _, event_type, payload, _ = row
    if not wanted:
        return True
    if TYPE in wanted and event_type not in wanted[TYPE] and key_of(str(event_type)) not in wanted[TYPE]:
        return False  # most are, and need not be parsed
    keys = keys_in(event_type, payload, wanted)
    return all(keys.get(name) in values for name, values in wanted.items())
