"""The end of the log on SQLite: its write lock orders appends."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain, count, repeat
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from peon.persistence.backends.compiled import CompiledStatement, insert_one
from peon.persistence.backends.driver_errors import database_name, no_sequence_left
from peon.persistence.backends.interface import LogHead
from peon.persistence.errors import StoreUnavailable
from peon.persistence.schema import LAST_SEQUENCE, MAXIMUM_SEQUENCE, events
from peon.persistence.schema.timestamps import format_timestamp

# Compiled once: SQLAlchemy's way from a Core statement to its text costs as much as SQLite's work for it.
_INSERT = str(insert(events).compile(dialect=sqlite.dialect(), column_keys=("event_type", "payload", "stored_at")))

# Of AUTOINCREMENT: the largest that the table has ever had.
_LARGEST_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'events'"

ROWS_A_STATEMENT = 16
"""Rows in one INSERT. For each statement the driver works as long as SQLite does for a row."""


@cache
def _insert_numbered(rows: int) -> CompiledStatement:
    """Returns the INSERT of that many rows with their sequences.

    AUTOINCREMENT assigns the sequence of a batch's first row, the others are given: SQLite does not promise in which
    order it stores the rows of one statement.
    """
    places = range(rows)
    values: list[dict[str, BindParameter[Any]]] = [
        {column.name: bindparam(f"{column.name}_{place}") for column in events.columns} for place in places
    ]
    return CompiledStatement(
        insert(events).values(values), [f"{column.name}_{place}" for place in places for column in events.columns]
    )


_ENDS = """
SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'events'),
    (SELECT max(sequence) FROM events NOT INDEXED),
    (SELECT max(sequence) FROM events INDEXED BY idx_events_sequence)
"""
_END_FITS = "peon_end_fits"


def require_fitting_end(connection: Connection) -> None:
    """Checks, once for each connection, that the table, its index and its counter agree about the end of the log.

    The counter is also ahead after the last events were removed by hand. That leaves a sound file, in which the next
    append brings the three together again. Only in this rare state the whole file is checked.

    Raises:
        StoreUnavailable: The file is damaged.
    """
    if _END_FITS in connection.info:
        return
    counter, in_table, in_index = connection.exec_driver_sql(_ENDS).one()
    agree = counter == in_table == in_index
    if not agree and connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one() != "ok":
        raise StoreUnavailable(
            f"{database_name(connection.engine)}: the file is damaged: its log ends with event {in_table}, and "
            f"{counter} events have been numbered. Was a backup put beside the -wal file of another state? Move the "
            "database, its -wal and its -shm file away, and restore a backup"
        )
    connection.info[_END_FITS] = True


class SQLiteLogHead(LogHead):
    """The end of the log in a transaction that holds the write lock."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._last: int | None = None

    def wait(self) -> None:
        """Does nothing: the transaction has acquired the write lock when it began."""

    @property
    def is_waiting(self) -> bool:
        return False

    @property
    def last(self) -> int:
        if self._last is None:
            self._last = self.connection.scalars(LAST_SEQUENCE).one()
        return self._last

    def add(self, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
        require_fitting_end(self.connection)
        moment = datetime.now(UTC)
        stored_at = format_timestamp(moment)
        try:
            first = insert_one(self.connection, _INSERT, (event_types[0], payloads[0], stored_at))
        except OperationalError as error:
            code = getattr(error.orig, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL and self._is_at_end():
                raise no_sequence_left(self.connection) from error
            raise
        if len(payloads) > 1:
            if first > MAXIMUM_SEQUENCE - len(payloads) + 1:
                raise no_sequence_left(self.connection)
            self._add_numbered(first + 1, event_types[1:], payloads[1:], stored_at)
        self._last = first + len(payloads) - 1
        return first, moment

    def _is_at_end(self) -> bool:
        """Returns whether no sequence is left, for which SQLite has the same code as for a full disk."""
        return self.connection.exec_driver_sql(_LARGEST_SEQUENCE).scalar() == MAXIMUM_SEQUENCE

    def _add_numbered(self, first: int, event_types: Sequence[str], payloads: Sequence[str], stored_at: str) -> None:
        rows = [*zip(count(first), event_types, payloads, repeat(stored_at))]
        full = len(rows) - len(rows) % ROWS_A_STATEMENT
        starts = range(0, full, ROWS_A_STATEMENT)
        _insert_numbered(ROWS_A_STATEMENT).run(
            self.connection, [tuple(chain.from_iterable(rows[start : start + ROWS_A_STATEMENT])) for start in starts]
        )
        if rest := rows[full:]:
            _insert_numbered(len(rest)).run(self.connection, [tuple(chain.from_iterable(rest))])
