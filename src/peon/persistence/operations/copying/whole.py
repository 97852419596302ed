"""Copies everything, or nothing: row by row, without decoding events."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table

from peon.persistence.database import Database
from peon.persistence.errors import PersistenceError
from peon.persistence.operations.copying.transaction import COPIED_TABLES, Row, Rows, in_copy_transaction, place_of
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import events


def copy_database(source: Database[Any], target: Database[Any], progress: Progress | None = None) -> int:
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
    return in_copy_transaction(source, target, lambda original, stored: _copy_all(original, stored, progress))


def _copy_all(original: Rows, stored: Rows, progress: Progress | None) -> int:
    count = original.count(events)
    meter = Meter(progress, 2 * count)
    for table in COPIED_TABLES:
        _copy(table, original, stored, meter)
    for table in COPIED_TABLES:
        _compare(table, original, stored, meter)
    return count


def _copy(table: Table, source: Rows, target: Rows, meter: Meter) -> None:
    kinds = [column.type.python_type for column in table.columns]
    for page in source.pages(table):
        for row in page:
            if [*map(type, row)] != kinds:
                _refuse_damaged(table, row, kinds, source)
            if not target.stores_nul and any("\0" in value for value in row if isinstance(value, str)):
                raise PersistenceError(
                    f"{source.database}: {place_of(table, row)} holds a NUL character, which PostgreSQL cannot store "
                    "in text; nothing was copied. Remove the row, or copy into an SQLite file"
                )
        target.add(table, page)
        if table is events:
            meter.add(len(page))


def _refuse_damaged(table: Table, row: Row, kinds: Sequence[type], source: Rows) -> None:
    cells = zip(table.columns, row, kinds, strict=True)
    damaged = ", ".join(column.name for column, value, kind in cells if type(value) is not kind)
    raise PersistenceError(
        f"{source.database}: {place_of(table, row)} is damaged: its value of {damaged} is not of the column's type, "
        "or not valid text; nothing was copied. Correct or remove the row, and copy again"
    )


def _compare(table: Table, source: Rows, target: Rows, meter: Meter) -> None:
    for page in source.pages(table):
        found = target.with_keys(table, [row[0] for row in page])
        for row in page:
            if found.get(row[0]) != row:
                state = "differs from the source" if row[0] in found else "is missing"
                raise PersistenceError(
                    f"{target.database}: {place_of(table, row)} {state} after the copy; the copy was rolled back. "
                    "Check whether a trigger of the target changes what is stored"
                )
        if table is events:
            meter.add(len(page))
    counts = source.count(table), target.count(table)
    if counts[0] != counts[1]:
        raise PersistenceError(
            f"{target.database}: {table.name} holds {counted(counts[1], 'row')} after the copy of "
            f"{counts[0]:,}; the copy was rolled back. Check whether a trigger of the target adds rows"
        )
