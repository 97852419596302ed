"""The transaction in which one database is copied into another, and the rows on both sides of it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, Table, delete, func, select

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import insert_into
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.backends.same_database import identity
from peon.persistence.database import Database
from peon.persistence.errors import PersistenceError
from peon.persistence.log.pages import LogPages
from peon.persistence.migrations import require_head
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import (
    command_receipts,
    event_tags,
    events,
    merged_events,
    redacted_events,
    redactions,
    removed_events,
    settings,
    subscription_positions,
    tag_positions,
    tags,
)

COPIED_TABLES = (
    events,
    removed_events,
    merged_events,
    redactions,
    redacted_events,
    settings,
    command_receipts,
    subscription_positions,
)
"""The tables that are not derived from the log. The first column of each is its primary key."""

INDEX_TABLES = (tag_positions, event_tags, tags)
"""The index of tags. A transaction that fills the index locks the first table."""

PAGE_ROWS = 1_000
"""Rows that are read at once from tables other than the log."""

Row = tuple[Any, ...]

ResultT = TypeVar("ResultT")

_INSERT = {table: insert_into(table) for table in COPIED_TABLES}

# Below every sequence, including negative ones that were inserted by hand.
_BEFORE_ALL = -(2**63)


def in_copy_transaction(
    source: Database[Any], target: Database[Any], copy: Callable[["Rows", "Rows"], ResultT]
) -> ResultT:
    """Commits what `copy` adds to an empty target, and returns its result.

    No other transaction can write to the target meanwhile. The source is read in one transaction too.

    Args:
        copy: Takes the rows of the source and of the target. It may run more than once.

    Raises:
        PersistenceError: See `copy_database`.
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
        lambda own: _copy_and_commit(source.engine, own, copy),
        advice="copy again, which is refused if it has",
    )


def _copy_and_commit(source: Engine, own: OwnTransaction, copy: Callable[["Rows", "Rows"], ResultT]) -> ResultT:
    writing = own.connection
    target_errors, source_errors = DriverErrors(writing.engine), DriverErrors(source)
    backend_of(writing).join_append(writing)
    # Wait for other transactions that write to these tables; `join_append` has done so for the log.
    backend_of(writing).lock_tables(writing, COPIED_TABLES[1:])
    stored = Rows(writing, target_errors)
    _require_empty(stored)
    for table in INDEX_TABLES:  # may be left from a log that was deleted by hand
        writing.execute(delete(table))
    reads = backend_of(source).consistent_reads(source)
    # `_decode_if_valid`, because the driver's error for text that is not UTF-8 does not say which row has it.
    with (
        source_errors,
        reads.connect() as reading,
        backend_of(reading).text_decoded_by(reading, _decode_if_valid),
    ):
        reading.begin()  # rolled back at the end: SQLite refuses a COMMIT after it has met a damaged page
        result = copy(Rows(reading, source_errors), stored)
    own.commit()
    return result


class Rows:
    """The rows of one database, as the transaction of a connection sees them.

    Attributes:
        database: Its name in messages.
        stores_nul: Whether text may hold NUL characters.
        connection: The connection whose transaction it is.
        driver_errors: Converts what its driver raises.
    """

    def __init__(self, connection: Connection, driver_errors: DriverErrors) -> None:
        self.database = database_name(connection.engine)
        self.stores_nul = backend_of(connection).stores_nul
        self.connection = connection
        self.driver_errors = driver_errors
        self.log = LogPages(connection.engine, driver_errors)

    def count(self, table: Table) -> int:
        with self.driver_errors:
            return self.connection.scalars(select(func.count()).select_from(table)).one()

    def pages(self, table: Table) -> Iterator[Sequence[Row]]:
        """Yields all rows in pages, sorted by key."""
        last = None
        while page := self.page(table, last):
            yield page
            last = page[-1][0]

    def execute(self, query: Select[Any]) -> Sequence[Row]:
        with self.driver_errors:
            return [tuple(row) for row in self.connection.execute(query)]

    def with_keys(self, table: Table, keys: Sequence[Any]) -> dict[Any, Row]:
        """Returns the rows that exist, by key."""
        query = select(table).where(table.columns[0].in_(keys))
        with self.driver_errors:
            return {row[0]: tuple(row) for row in self.connection.execute(query)}

    def add(self, table: Table, rows: Sequence[Row]) -> None:
        with self.driver_errors:
            _INSERT[table].run(self.connection, rows)

    def page(self, table: Table, last: Any) -> Sequence[Row]:
        """Returns the rows after the one with the key `last`; the first rows for `None`."""
        with self.driver_errors:
            if table is events:
                return self.log.read_page(self.connection, _BEFORE_ALL if last is None else last)
            key = table.columns[0]
            query = select(table).order_by(key).limit(PAGE_ROWS)
            if last is not None:
                query = query.where(key > last)
            return [tuple(row) for row in self.connection.execute(query)]


def place_of(table: Table, row: Row) -> str:
    return f"row {row[0]!r} of {table.name}"


def _require_empty(target: Rows) -> None:
    counts = {table.name: target.count(table) for table in COPIED_TABLES}
    present = [f"{counted(count, 'row')} of {name}" for name, count in counts.items() if count]
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
