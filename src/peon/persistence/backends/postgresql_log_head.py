"""The end of the log on PostgreSQL: the lock of one row orders appends.

A sequence of PostgreSQL hands out numbers before the commit, and loses those of failed transactions. So appenders
lock the row of `append_lock` until they commit, and count on from the last committed event.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self

from sqlalchemy import ClauseElement, Connection, CursorResult, Text, bindparam, func, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends.driver_errors import database_name, no_sequence_left
from peon.persistence.backends.interface import LogHead
from peon.persistence.backends.postgresql_lock_timeout import limited, lock_timeout_of
from peon.persistence.errors import StoreUnavailable
from peon.persistence.schema import LAST_SEQUENCE, append_lock, events
from peon.persistence.schema.timestamps import format_timestamp

MESSAGE_CHARACTERS = 50_000_000
"""Text in one statement. PostgreSQL takes messages of up to 1 GB."""

CREATE_LOCK_ROW = "INSERT INTO append_lock (number) VALUES (1)"

OUT_OF_RANGE = "22003"
"""The SQLSTATE of a number that its column does not take: the sequence is the only number that an append computes."""

_SELECT_LOCK = select(append_lock.c.number).with_for_update()


def _compile(statement: ClauseElement, *, literal_binds: bool = False) -> str:
    dialect = postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    # psycopg sends a list as text unless it is told otherwise, which takes several times as long.
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": literal_binds})).replace("%s", "%b")


def _insert_arrays() -> ClauseElement:
    """An INSERT of two arrays of columns, numbered on from the last event, that returns the first number."""
    columns = [bindparam(name, type_=postgresql.ARRAY(Text)) for name in ("event_types", "payloads")]
    added = (
        func.unnest(*columns)
        .table_valued("event_type", "payload", with_ordinality="place", name="added")
        .render_derived()
    )
    last = LAST_SEQUENCE.scalar_subquery()
    rows = select(bindparam("stored_at", type_=Text), last + added.c.place, added.c.event_type, added.c.payload)
    inserted = insert(events).from_select(["stored_at", "sequence", "event_type", "payload"], rows)
    stored = inserted.returning(events.c.sequence).cte("stored")
    return select(func.min(stored.c.sequence))


# Explicit, whatever the server's default is: otherwise the transaction could see the log as it was before the lock.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_LOCK = _compile(_SELECT_LOCK)
_LAST = _compile(LAST_SEQUENCE)
_INSERT = _compile(_insert_arrays())


@cache
def _lock_within(seconds: float | None) -> str:
    return _compile(_SELECT_LOCK.where(limited(seconds)), literal_binds=True)


class PostgreSQLLogHead(LogHead):
    """The end of the log in a transaction that locks the row of `append_lock`.

    Args:
        opening: The statements that open the transaction and acquire the lock. They are sent together with the
            first statement that follows: one round trip for all.
    """

    def __init__(self, connection: Connection, opening: Sequence[str]) -> None:
        self.connection = connection
        self._opening = opening
        self._last: int | None = None

    @classmethod
    def begin(cls, connection: Connection) -> Self:
        connection.begin()
        return cls(connection, [_BEGIN, _lock_within(lock_timeout_of(connection))])

    @classmethod
    def join(cls, connection: Connection) -> Self:
        head = cls(connection, [_LOCK])
        head.wait()
        return head

    def wait(self) -> None:
        if self._opening:
            self._last = self._run(_LAST)

    @property
    def is_waiting(self) -> bool:
        return bool(self._opening)

    @property
    def last(self) -> int:
        if self._last is None:
            self.wait()
        if self._last is None:
            self._last = self.connection.scalars(LAST_SEQUENCE).one()
        return self._last

    def add(self, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
        moment = datetime.now(UTC)
        stored_at = format_timestamp(moment)
        firsts = [
            self._run(_INSERT, (stored_at, event_types[part], payloads[part])) for part in _slices_to_send(payloads)
        ]
        self._last = firsts[0] + len(payloads) - 1
        return firsts[0], moment

    def _run(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Returns the only value of the statement; the opening statements are sent before it."""
        locked: CursorResult[Any] | None = None
        try:
            with _in_one_round_trip(self.connection):
                for earlier in self._opening:  # the last one acquires the lock
                    locked = self.connection.exec_driver_sql(earlier)
                result = self.connection.exec_driver_sql(statement, tuple(parameters))
            self._require_lock(locked)
            value = _only_value(result)
        except Exception as error:
            self._require_lock(locked, error)
            cause = error.orig if isinstance(error, DBAPIError) else error
            if getattr(cause, "sqlstate", None) == OUT_OF_RANGE:
                raise no_sequence_left(self.connection) from error
            raise
        if self._opening:
            self._opening, self.locked_at = [], time.monotonic()
        return value

    def _require_lock(self, locked: CursorResult[Any] | None, error: Exception | None = None) -> None:
        # Without the row, appends collide or block each other, with errors that tell nothing about the cause.
        if locked is not None and locked.context.cursor.rowcount == 0:
            raise StoreUnavailable(
                f"{database_name(self.connection.engine)}: the row of the table append_lock, which orders appends, is "
                f"missing: run  {CREATE_LOCK_ROW}"
            ) from error


def _in_one_round_trip(connection: Connection) -> AbstractContextManager[object]:
    """Sends several statements together. The server still executes them one after the other."""
    from psycopg import Pipeline  # installed, since there is a connection to PostgreSQL

    # SQLAlchemy's adapter for event loops has no pipeline, nor has an old libpq.
    if connection.dialect.is_async or not Pipeline.is_supported():
        return nullcontext()
    driver: Any = connection.connection.dbapi_connection
    pipeline: AbstractContextManager[object] = driver.pipeline()
    return pipeline


def _only_value(result: CursorResult[Any]) -> int:
    """Returns the number that a statement returned.

    SQLAlchemy asks a cursor right after the statement whether there are rows. In a pipeline the answer is no, so it
    closes the cursor. What the server sent later is still in `pgresult`.
    """
    if result.returns_rows:
        value: int = result.scalar_one()
        return value
    cursor: Any = result.context.cursor
    return int(cursor.pgresult.get_value(0, 0))


def _slices_to_send(payloads: Sequence[str]) -> Iterator[slice]:
    start = characters = 0
    for index, payload in enumerate(payloads):
        if characters > MESSAGE_CHARACTERS:
            yield slice(start, index)
            start, characters = index, 0
        characters += len(payload)
    yield slice(start, len(payloads))
