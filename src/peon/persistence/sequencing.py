"""Adds rows at the end of the log so that the order of sequences is the order of commits, without gaps."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count, repeat

from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.dialects import sqlite

from peon.persistence.engine import sqlite_connection
from peon.persistence.schema import events
from peon.persistence.timestamps import format_timestamp

_COLUMNS = ("event_type", "payload", "stored_at")

# Compiled once: SQLAlchemy's own way from the statement to the driver costs as much as SQLite's work for it.
_SQLITE_INSERT = str(insert(events).compile(dialect=sqlite.dialect(), column_keys=_COLUMNS))

_LAST = select(func.coalesce(func.max(events.c.sequence), 0))


def add_rows(connection: Connection, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
    """Stores at least one event, of which two columns are given, in the transaction that `begin_writing` opened.

    Returns:
        The sequence of the first, the others following without a gap, and the moment they were stored.
    """
    if connection.dialect.name == "sqlite":
        return _add_to_sqlite(connection, event_types, payloads)
    return _add_to_postgresql(connection, event_types, payloads)


def lock_log(connection: Connection) -> None:
    """Keeps all others from appending until the transaction that `begin_writing` opened ends; not from reading."""
    # A sequence of PostgreSQL hands out numbers before commit and loses those of transactions that fail. So
    # appenders take turns, and count on from what is committed. In SQLite they do so anyway.
    if connection.dialect.name != "sqlite":
        connection.execute(text("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE"))


def _add_to_sqlite(connection: Connection, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
    # The write lock is held, so nobody comes between these rows, and no number is lost when they are undone.
    moment = datetime.now(UTC)
    driver = sqlite_connection(connection)
    driver.executemany(_SQLITE_INSERT, zip(event_types, payloads, repeat(format_timestamp(moment))))
    (last,) = driver.execute("SELECT last_insert_rowid()").fetchone()
    return last - len(payloads) + 1, moment


def _add_to_postgresql(
    connection: Connection, event_types: Sequence[str], payloads: Sequence[str]
) -> tuple[int, datetime]:
    lock_log(connection)
    first: int = connection.scalars(_LAST).one() + 1
    moment = datetime.now(UTC)
    stored_at = format_timestamp(moment)
    connection.execute(
        insert(events),
        [
            {"sequence": sequence, "event_type": event_type, "payload": payload, "stored_at": stored_at}
            for sequence, event_type, payload in zip(count(first), event_types, payloads, strict=False)
        ],
    )
    return first, moment
