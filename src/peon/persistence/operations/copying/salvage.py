"""Copies what can be read of a damaged database."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Table, select

from peon.persistence.backends import backend_of
from peon.persistence.database import Database
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.operations.copying.transaction import COPIED_TABLES, Row, Rows, in_copy_transaction, place_of
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.schema import LAST_SEQUENCE, command_receipts, events, removed_events, subscription_positions

ResultT = TypeVar("ResultT")

ROWS_AT_ONCE = 500
"""Rows that are looked up by their keys in one query."""


class LostRow(NamedTuple):
    """A row of another table than the log that was not copied.

    Attributes:
        table: The name of the table.
        key: Its primary key.
    """

    table: str
    key: str


class SalvageReport(NamedTuple):
    """What `salvage_database` has copied, and what it could not.

    Attributes:
        events: The number of copied events.
        lost_sequences: The sequences up to the end of the log that are not in the copy: those of damaged events, and
            of events that were removed by hand earlier. A gap that a compaction has recorded is not lost.
        lost_rows: Rows of other tables that are damaged, and receipts of commands whose events are not all there.
        incomplete_tables: Tables other than the log of which more rows may be lost, because their keys cannot be read.
    """

    events: int
    lost_sequences: tuple[int, ...]
    lost_rows: tuple[LostRow, ...]
    incomplete_tables: tuple[str, ...]


def salvage_database(source: Database[Any], target: Database[Any], progress: Progress | None = None) -> SalvageReport:
    """Copies what can be read of a damaged database into an empty one, and reports what is lost.

    It is for a database that `copy_database` refuses, when there is no backup. Open the source with
    `maintain_projections=False`. The copy is one transaction in the target, in which each row is compared with the
    source. Copied events keep their sequences. A saved position of a subscription beyond the last copied event is set
    to that event, because the target gives the following sequences to new events.

    Args:
        progress: Called with the number of sequences that were looked for, and the last sequence of the log.

    Raises:
        SchemaOutOfDate: See `copy_database`.
        StoreUnavailable: One of the databases is locked, full or not reachable, or the source does not even tell
            where its log ends.
        PersistenceError: The target is not empty, or is the source.

    If an error is raised, nothing was copied, unless its message says that the outcome is unknown.
    """
    return in_copy_transaction(source, target, lambda damaged, stored: _Salvage(damaged, stored, progress).run())


class _Salvage:
    def __init__(self, source: Rows, target: Rows, progress: Progress | None) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._backend = backend_of(source.connection)
        self._lost_rows: list[LostRow] = []
        self._incomplete_tables: list[str] = []

    def run(self) -> SalvageReport:
        end = self._end_of_log()
        meter = Meter(self._progress, end)
        copied: set[int] = set()
        reached = 0
        for through, page in self._pages_of_log(end):
            copied.update(row[0] for row in self._copy(events, page))
            meter.add(through - reached)
            reached = through
        meter.finish()
        accounted_for = copied.copy()
        for table in COPIED_TABLES[1:]:
            rows = self._rows_of(table)
            if table is removed_events:
                for first, last, *_ in self._copy(table, rows):
                    accounted_for.update(range(first, last + 1))
                continue
            if table is command_receipts:
                rows = self._complete_receipts(rows, accounted_for)
            elif table is subscription_positions:
                last = max(copied, default=0)
                rows = [(name, min(sequence, last), saved_at) for name, sequence, saved_at in rows]
            self._copy(table, rows)
        lost = tuple(sequence for sequence in range(1, end + 1) if sequence not in accounted_for)
        return SalvageReport(len(copied), lost, tuple(self._lost_rows), tuple(self._incomplete_tables))

    def _end_of_log(self) -> int:
        """Returns the highest sequence that the database knows of, even if that event cannot be read."""
        assigned = self._readable(lambda: self._backend.last_assigned_sequence(self._source.connection))
        if assigned:
            return assigned
        with self._source.driver_errors:
            return int(self._source.connection.scalars(LAST_SEQUENCE).one())

    def _pages_of_log(self, end: int) -> Iterator[tuple[int, Sequence[Row]]]:
        """Yields the readable rows in order, and after each page the sequence up to which was looked."""
        after = 0
        while after < end:
            page = self._readable(lambda after=after: self._source.page(events, after))  # type: ignore[misc]
            if page is not None and not page:
                break
            if page is None or page[-1][0] <= after:  # a damaged page can contain anything
                through = min(after + ROWS_AT_ONCE, end)
                page = self._readable_rows(events, range(after + 1, through + 1))
            else:
                through = page[-1][0]
            yield through, [row for row in page if after < row[0] <= end]
            after = through

    def _rows_of(self, table: Table) -> list[Row]:
        rows = self._readable(lambda: [row for page in self._source.pages(table) for row in page])
        if rows is None:  # without an order, the index of the keys is not read
            rows = self._readable(lambda: [*self._source.execute(select(table))])
        if rows is not None:
            return rows
        keys = self._keys_of(table)
        found: list[Row] = []
        for start in range(0, len(keys), ROWS_AT_ONCE):
            found += self._readable_rows(table, keys[start : start + ROWS_AT_ONCE])
        lost = set(keys) - {row[0] for row in found}
        self._lost_rows += [LostRow(table.name, str(key)) for key in sorted(lost, key=str)]
        return found

    def _keys_of(self, table: Table) -> list[Any]:
        """Returns the keys from both ends of their index up to where it cannot be read."""
        key = table.columns[0]
        up: list[Any] = []
        down: list[Any] = []
        for keys, order, is_beyond in ((up, key.asc(), key.__gt__), (down, key.desc(), key.__lt__)):
            query = select(key).order_by(order).limit(1)
            while True:
                following = query.where(is_beyond(keys[-1])) if keys else query
                found = self._readable(lambda following=following: self._source.execute(following))  # type: ignore[misc]
                if found is None:
                    break
                if not found:
                    return keys
                keys.append(found[0][0])
        self._incomplete_tables.append(table.name)
        return list(dict.fromkeys([*up, *reversed(down)]))

    def _readable_rows(self, table: Table, keys: Sequence[Any]) -> list[Row]:
        """Returns the rows that can be read; halves the keys until each of the others is alone."""
        rows = self._readable(lambda: self._source.with_keys(table, keys))
        if rows is not None:
            return [rows[key] for key in keys if key in rows]
        if len(keys) == 1:
            return []
        middle = len(keys) // 2
        return self._readable_rows(table, keys[:middle]) + self._readable_rows(table, keys[middle:])

    def _readable(self, read: Callable[[], ResultT]) -> ResultT | None:
        """Returns what the function reads; `None` if it meets damage."""
        try:
            with self._backend.statements_that_may_fail(self._source.connection):
                return read()
        except StoreUnavailable as error:
            cause = error.__cause__
            if not isinstance(cause, Exception) or not self._backend.is_fault_of_tables(cause):
                raise
            return None

    def _complete_receipts(self, receipts: list[Row], present: set[int]) -> list[Row]:
        """Returns the receipts whose events were all copied, or merged by a compaction before.

        A command that is repeated must not find other events.
        """
        complete = []
        for receipt in receipts:
            command_id, first, count, _ = receipt
            if present.issuperset(range(first, first + count)):
                complete.append(receipt)
            else:
                self._lost_rows.append(LostRow(command_receipts.name, str(command_id)))
        return complete

    def _copy(self, table: Table, rows: Sequence[Row]) -> list[Row]:
        """Copies the rows that are not damaged, and returns them."""
        kinds = [column.type.python_type for column in table.columns]
        sound = []
        for row in rows:
            if [*map(type, row)] == kinds and (self._target.stores_nul or not _contains_nul(row)):
                sound.append(row)
            elif table is not events:
                self._lost_rows.append(LostRow(table.name, str(row[0])))
        for start in range(0, len(sound), ROWS_AT_ONCE):
            some = sound[start : start + ROWS_AT_ONCE]
            self._target.add(table, some)
            found = self._target.with_keys(table, [row[0] for row in some])
            for row in some:
                if found.get(row[0]) != row:
                    raise PersistenceError(
                        f"{self._target.database}: {place_of(table, row)} differs from the source after the copy, "
                        "which was rolled back. Check whether a trigger of the target changes what is stored"
                    )
        return sound


def _contains_nul(row: Row) -> bool:
    return any("\0" in value for value in row if isinstance(value, str))
