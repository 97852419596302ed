"""Copies a database into an empty one, possibly of the other backend, row by row, without decoding events."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, select

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import insert_into
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.backends.same_database import identity
from peon.persistence.database import Database
from peon.persistence.errors import PersistenceError
from peon.persistence.log.pages import LogPages
from peon.persistence.migrations import require_head
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.schema import (
    command_receipts,
    event_tags,
    events,
    settings,
    subscription_positions,
    tag_positions,
    tags,
)

COPIED_TABLES = (events, settings, command_receipts, subscription_positions)
"""The tables that are not derived from the log. The first column of each is its primary key."""

INDEX_TABLES = (tag_positions, event_tags, tags)
"""The index of tags. A transaction that fills the index locks the first table."""

PAGE_ROWS = 1_000
"""Rows that are read at once from tables other than the log."""

Row = tuple[Any, ...]

_INSERT = {table: insert_into(table) for table in COPIED_TABLES}

# Below every sequence, including negative ones that were inserted by hand.
_BEFORE_ALL = -(2**63)


def copy_database(source: Database, target: Database, progress: Progress | None = None) -> int:
    """Copies the log, settings, receipts of commands and positions of subscriptions into an empty database.

    The copy is one transaction in the target, during which no other transaction can write there. Before the commit,
    each row is read back and compared with the source. The source is read in one transaction too: others may keep
    writing to it, but what they write is not copied.

    Tables that are derived from the log are not copied: `target.projections.catch_up()` builds the projections.

    Args:
        progress: Called after each page with the number of events done and to do. Each event counts twice: it is
            copied, and then compared.

    Returns:
        The number of copied events.

    Raises:
        SchemaOutOfDate: One of the databases is not at the newest revision.
        StoreUnavailable: One of the databases is locked, read-only, full, damaged or not reachable.
        PersistenceError: The target is not empty, or is the source; a row of the source is damaged, or cannot be
            stored in the target as it is.

    If an error is raised, nothing was copied, unless its message says that the outcome is unknown.
    """
    for engine in (source.engine, target.engine):
        require_head(engine)
    if identity(source.engine) == identity(target.engine):
        raise PersistenceError(
            f"{database_name(source.engine)} and {database_name(target.engine)} are the same database: name another "
            "target"
        )
    return with_own_commit(
        target.engine,
        DriverErrors(target.engine),
        lambda own: _copy_all(source.engine, own, progress),
        advice="copy again, which is refused if it has",
    )


def _copy_all(source: Engine, own: OwnTransaction, progress: Progress | None) -> int:
    writing = own.connection
    target_errors, source_errors = DriverErrors(writing.engine), DriverErrors(source)
    backend_of(writing).join_append(writing)
    # Wait for other transactions that write to these tables; `join_append` has done so for the log.
    backend_of(writing).lock_tables(writing, COPIED_TABLES[1:])
    stored = _Rows(writing, target_errors)
    _require_empty(stored)
    for table in INDEX_TABLES:  # may be left from a log that was deleted by hand
        writing.execute(delete(table))
    reads = backend_of(source).consistent_reads(source)
    # `_decode_if_valid`, because the driver's error for text that is not UTF-8 does not say which row has it.
    with (
        source_errors,
        reads.connect() as reading,
        reading.begin(),
        backend_of(reading).text_decoded_by(reading, _decode_if_valid),
    ):
        original = _Rows(reading, source_errors)
        count = original.count(events)
        meter = Meter(progress, 2 * count)
        for table in COPIED_TABLES:
            _copy(table, original, stored, meter)
        for table in COPIED_TABLES:
            _compare(table, original, stored, meter)
    own.commit()
    return count


class _Rows:
    """The rows of one database, as the transaction of a connection sees them."""

    def __init__(self, connection: Connection, driver_errors: DriverErrors) -> None:
        self.database = database_name(connection.engine)
        self.stores_nul = backend_of(connection).stores_nul
        self._connection = connection
        self._driver_errors = driver_errors
        self._log = LogPages(connection.engine, driver_errors)

    def count(self, table: Table) -> int:
        with self._driver_errors:
            return self._connection.scalars(select(func.count()).select_from(table)).one()

    def pages(self, table: Table) -> Iterator[Sequence[Row]]:
        """Yields all rows in pages, sorted by key."""
        last = None
        while page := self._page(table, last):
            yield page
            last = page[-1][0]

    def with_keys(self, table: Table, keys: Sequence[Any]) -> dict[Any, Row]:
        """Returns the rows that exist, by key."""
        query = select(table).where(table.columns[0].in_(keys))
        with self._driver_errors:
            return {row[0]: tuple(row) for row in self._connection.execute(query)}

    def add(self, table: Table, rows: Sequence[Row]) -> None:
        with self._driver_errors:
            _INSERT[table].run(self._connection, rows)

    def _page(self, table: Table, last: Any) -> Sequence[Row]:
        with self._driver_errors:
            if table is events:
                return self._log.read_page(self._connection, _BEFORE_ALL if last is None else last)
            key = table.columns[0]
            query = select(table).order_by(key).limit(PAGE_ROWS)
            if last is not None:
                query = query.where(key > last)
            return [tuple(row) for row in self._connection.execute(query)]


def _copy(table: Table, source: _Rows, target: _Rows, meter: Meter) -> None:
    kinds = [column.type.python_type for column in table.columns]
    for page in source.pages(table):
        for row in page:
            if [*map(type, row)] != kinds:
                _refuse_damaged(table, row, kinds, source)
            if not target.stores_nul and any("\0" in value for value in row if isinstance(value, str)):
                raise PersistenceError(
                    f"{source.database}: {_place(table, row)} holds a NUL character, which PostgreSQL cannot store in "
                    "text; nothing was copied. Remove the row, or copy into an SQLite file"
                )
        target.add(table, page)
        if table is events:
            meter.add(len(page))


def _refuse_damaged(table: Table, row: Row, kinds: Sequence[type], source: _Rows) -> None:
    cells = zip(table.columns, row, kinds, strict=True)
    damaged = ", ".join(column.name for column, value, kind in cells if type(value) is not kind)
    raise PersistenceError(
        f"{source.database}: {_place(table, row)} is damaged: its value of {damaged} is not of the column's type, "
        "or not valid text; nothing was copied. Correct or remove the row, and copy again"
    )


def _compare(table: Table, source: _Rows, target: _Rows, meter: Meter) -> None:
    for page in source.pages(table):
        found = target.with_keys(table, [row[0] for row in page])
        for row in page:
            if found.get(row[0]) != row:
                state = "differs from the source" if row[0] in found else "is missing"
                raise PersistenceError(
                    f"{target.database}: {_place(table, row)} {state} after the copy; the copy was rolled back. "
                    "Check whether a trigger of the target changes what is stored"
                )
        if table is events:
            meter.add(len(page))
    counts = source.count(table), target.count(table)
    if counts[0] != counts[1]:
        raise PersistenceError(
            f"{target.database}: {table.name} holds {counts[1]:,} rows after {counts[0]:,} were copied; the copy was "
            "rolled back. Check whether a trigger of the target adds rows"
        )


def _place(table: Table, row: Row) -> str:
    return f"row {row[0]!r} of {table.name}"


def _require_empty(target: _Rows) -> None:
    counts = {table.name: target.count(table) for table in COPIED_TABLES}
    present = [f"{count:,} rows of {name}" for name, count in counts.items() if count]
    if present:
        raise PersistenceError(
            f"{target.database} is not empty: it holds {', '.join(present)}. Nothing was copied; choose a new "
            "database, or one that was migrated but never used"
        )


def _decode_if_valid(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
