"""The index of tags: which events have a field with a value.

It is derived from the log when a query first asks for a field. Appends do not write it, so it is usually behind the
log; queries read the events above its position from the log itself.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from math import inf

from sqlalchemy import Connection, Engine, bindparam, delete, exists, insert, select, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.errors import StoreUnavailable
from peon.persistence.log.matcher import Matcher
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.query import EventQuery, keys_in
from peon.persistence.log.removed import as_ranges
from peon.persistence.log.tag_walk import NEWEST_FIRST, TakesLong, Walk
from peon.persistence.runtime.log_records import INDEX, report
from peon.persistence.schema import LAST_SEQUENCE, event_tags, tag_positions, tags

TAIL_EVENTS = 1_000
"""Up to this many events above the position of the index are read from the log instead of indexed, in about 2 ms."""

TAIL_CHARACTERS = 1_000_000
"""Payload text in those events above which they are indexed after all: reading it would take too long."""

PAGES_A_COMMIT = 10
"""Pages of the log that are indexed in one transaction. Appends wait for it, for a tenth of a second."""

LOGGED_EVENTS = 10_000
"""Filling the index with more events is logged as INFO, as it takes longer than a tenth of a second."""

PAGE_MATCHES = 250
"""Matching events that a query fetches at once."""

LOCKED_ROUNDS = 10
"""Ranges of the tags of an item that may be read while the write lock is held, in about 10 ms."""

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

_DELETE_UNUSED_TAG = CompiledStatement(
    delete(tags).where(
        tags.c.name == bindparam("of_name"),
        tags.c.value == bindparam("of_value"),
        ~exists().where(event_tags.c.tag_id == tags.c.id),
    ),
    ["of_name", "of_value"],
)


class TagIndex:
    """The index of tags in one database.

    Args:
        list_tags: The tags of which an event can have several values.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors, list_tags: Collection[str]) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._add_tag = self._backend.insert(tags).on_conflict_do_nothing()
        self._add_position = self._backend.insert(tag_positions).on_conflict_do_nothing()
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)
        self._list_tags = list_tags

    @cached_property
    def _log_backwards(self) -> LogPages:
        return LogPages(self._engine, self._driver_errors, newest_first=True)

    def matcher(self, query: EventQuery) -> Matcher:
        return Matcher(query, self._list_tags)

    def first_match(
        self, connection: Connection, matcher: Matcher, after: int, last: int, *, may_take_long: bool
    ) -> int | None:
        """Returns the lowest sequence above `after` of an event that matches, `None` if there is none.

        Args:
            last: The end of the log.
            may_take_long: Read any amount of the index.

        Raises:
            TakesLong: Too much of the log is not indexed yet, or too much of the index would have to be read.
        """
        if after >= last:
            return None
        if last - after <= TAIL_EVENTS or not matcher.names:
            with suppress(TakesLong):
                return self._first_in_log(connection, matcher, after)
        indexed = self._position(connection, matcher.names)
        if last - max(indexed, after) > TAIL_EVENTS:
            raise TakesLong
        rounds = inf if may_take_long else LOCKED_ROUNDS
        found = self._first_in_index(connection, matcher, after, indexed, rounds)
        return self._first_in_log(connection, matcher, max(indexed, after)) if found is None else found

    def holds_until(self, matcher: Matcher, after: int) -> int:
        """Indexes the tags, and returns a sequence up to which no event above `after` matches."""
        self.catch_up(matcher.names)
        with self._driver_errors, self._reads.connect() as connection:
            indexed = self._position(connection, matcher.names)
            found = self._first_in_index(connection, matcher, after, indexed, inf)
        return indexed if found is None else found - 1

    def _first_in_index(
        self, connection: Connection, matcher: Matcher, after: int, indexed: int, rounds: float
    ) -> int | None:
        if after >= indexed:
            return None
        # The event after one up to which a condition holds: it is the conflict, unless it was removed meanwhile.
        if any(map(matcher.matches, self._log.read_rows(connection, [after + 1]))):
            return after + 1
        walk = Walk(connection, matcher.items, after, indexed, rounds=rounds)
        while found := walk.first(connection, after, 1):
            if any(map(matcher.matches, self._log.read_rows(connection, found))):
                return found[0]
            after = found[0]  # the event was removed or changed by hand
        return None

    def _first_in_log(self, connection: Connection, matcher: Matcher, after: int) -> int | None:
        characters = 0
        while page := self._log.read_page(connection, after):
            for row in page:
                if matcher.matches(row):
                    return row[0]
            characters += sum(len(payload or "") for _, _, payload, _ in page)
            if characters > TAIL_CHARACTERS:
                raise TakesLong
            after = page[-1][0]
        return None

    def pages(self, query: EventQuery, after: int, limit: int | None) -> Iterator[list[LogRow]]:
        """Yields the rows that match. See `LogPages.read`. Fills the index first if it is far behind."""
        matcher = self.matcher(query)
        remaining = limit
        walk: Walk | None = None
        with suppress(StoreUnavailable):  # a database that cannot be written now is read without it
            self.catch_up(matcher.names, after, tail=TAIL_EVENTS, wait=False)
        while remaining is None or remaining > 0:
            with self._driver_errors, self._reads.connect() as connection:
                indexed = self._position(connection, matcher.names)
                if after < indexed:
                    if walk is None or walk.until != indexed:
                        walk = Walk(connection, matcher.items, after, indexed)
                    sequences = walk.first(connection, after, PAGE_MATCHES)
                    page = self._log.read_rows(connection, sequences)
                    if 0 < len(page) < len(sequences):  # large events ended the page early
                        after = page[-1][0]
                    else:
                        after = sequences[-1] if len(sequences) == PAGE_MATCHES else indexed
                else:
                    read = self._log.read_page(connection, after)
                    if not read:
                        return
                    page = [*filter(matcher.matches, read)]
                    after = read[-1][0]
            page = page[:remaining]
            if remaining is not None:
                remaining -= len(page)
            if page:
                yield page

    def pages_backwards(self, query: EventQuery, after: int, limit: int | None, before: int) -> Iterator[list[LogRow]]:
        """Yields the rows above `after` and below `before` that match, newest first. See `pages`."""
        matcher = self.matcher(query)
        remaining = inf if limit is None else limit
        walk: Walk | None = None
        with suppress(StoreUnavailable):
            self.catch_up(matcher.names, after, tail=TAIL_EVENTS, wait=False)
        while remaining > 0 and before - 1 > after:
            with self._driver_errors, self._reads.connect() as connection:
                indexed = max(self._position(connection, matcher.names), after)
                if before - 1 > indexed:
                    read = self._log_backwards.read_page(connection, indexed, before)
                    page = [*filter(matcher.matches, read)]
                    before = read[-1][0] if read else indexed + 1
                else:
                    entries = int(min(PAGE_MATCHES, remaining))
                    walk = walk or Walk(connection, matcher.items, -before, -after - 1, NEWEST_FIRST)
                    sequences = [-sequence for sequence in walk.first(connection, -before, entries)]
                    page = self._log_backwards.read_rows(connection, sequences)
                    if 0 < len(page) < len(sequences):  # large events ended the page early
                        before = page[-1][0]
                    else:
                        before = sequences[-1] if len(sequences) == entries else after + 1
            page = page[: int(min(len(page), remaining))]
            remaining -= len(page)
            if page:
                yield page

    def catch_up(self, names: Collection[str], after: int = 0, *, tail: int = 0, wait: bool = True) -> None:
        """Indexes tags up to the present end of the log, in transactions of its own.

        Args:
            names: See `Matcher.names`.
            after: The query does not ask for the part of the log up to this sequence.
            tail: The number of events that may stay unindexed.
            wait: Wait for locks that others hold; otherwise raise `StoreUnavailable`.
        """
        if not names:
            return
        with self._driver_errors:
            with self._reads.connect() as connection:
                end: int = connection.scalars(LAST_SEQUENCE).one()
                position = self._position(connection, names)
            if end - after <= tail:
                return
        if end - position > tail:
            self._fill(names, position, end - tail, wait=wait)

    def _fill(self, names: Collection[str], position: int, until: int, *, wait: bool) -> None:
        """Indexes tags from a position until a sequence, or further."""
        facts = {"tags": sorted(names), "database": database_name(self._engine)}
        level = logging.INFO if until - position > LOGGED_EVENTS else logging.DEBUG
        message = "filling the index of the tags %(tags)s of %(database)s (events: %(events)d)"
        report(INDEX, level, message, **facts, events=until - position)
        began, start = time.monotonic(), position
        while position < until:
            with self._driver_errors, self._transaction(wait=wait) as connection:
                self.extend(connection, names, PAGES_A_COMMIT)
                position = self._position(connection, names)
        message = "filled the index of the tags %(tags)s of %(database)s in %(seconds).3f s (events: %(events)d)"
        report(INDEX, level, message, **facts, events=position - start, seconds=time.monotonic() - began)

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
        found = sorted(
            ((name, key), row[0])
            for row in page
            for name, keys in keys_in(row[1], row[2], names).items()
            for key in keys
        )
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
            for name, values in keys_in(event_type, payload, names).items():
                for value in values:
                    found[name, value] += sequences
        _DELETE_EVENT_TAGS.run(
            connection, [(*key, *each) for key, sequences in found.items() for each in as_ranges(sequences)]
        )

    def replace(self, connection: Connection, changed: Sequence[tuple[LogRow, str, str]]) -> None:
        """Replaces the entries of events whose tags change in the transaction; forgets values that no event has left.

        Args:
            changed: The rows as they were, each with the new type and payload.
        """
        # A transaction that fills the index locks these rows as well, and then reads the events as they are now. One
        # that has inserted a row, which nobody sees before its commit, has read them already: wait for it.
        self._backend.lock_tables(connection, [tag_positions])
        query = select(tag_positions.c.name, tag_positions.c.sequence).with_for_update()
        positions: dict[str, int] = {row.name: row.sequence for row in connection.execute(query)}
        added: set[tuple[int, str, str]] = set()
        removed: set[tuple[int, str, str]] = set()
        for (sequence, event_type, payload, _), new_type, new_payload in changed:
            names = [name for name, position in positions.items() if sequence <= position]
            for keys, entries in (
                (keys_in(event_type, payload, names), removed),
                (keys_in(new_type, new_payload, names), added),
            ):
                entries.update((sequence, name, key) for name, values in keys.items() for key in values)
        gone = sorted({entry[1:] for entry in removed - added})
        _DELETE_EVENT_TAGS.run(connection, [(*key, at, at) for at, *key in sorted(removed - added)])
        _DELETE_UNUSED_TAG.run(connection, gone)
        if new := sorted(added - removed):
            connection.execute(self._add_tag, [{"name": name, "value": value} for _, name, value in new])
            _INSERT_EVENT_TAG.run(connection, new)

    def _position(self, connection: Connection, names: Collection[str]) -> int:
        """Returns the sequence up to which all the tags are indexed."""
        query = select(tag_positions.c.sequence).where(tag_positions.c.name.in_(list(names)))
        found = connection.scalars(query).all()
        return min(found) if len(found) == len(names) and found else 0
