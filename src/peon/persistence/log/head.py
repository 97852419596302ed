"""The end of the log, where rows are added so that the order of sequences is the order of commits, without gaps."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from functools import cache
from itertools import chain, count, repeat
from typing import Any, Self

from sqlalchemy import (
    ClauseElement,
    Connection,
    Engine,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from peon.persistence.backends.compiled import DriverStatement, insert_into
from peon.persistence.backends.engine import begin_writing
from peon.persistence.backends.lock_timeout import limited, lock_timeout_of
from peon.persistence.schema import append_lock, events
from peon.persistence.schema.timestamps import format_timestamp

_LAST = select(func.coalesce(func.max(events.c.sequence), literal_column("0")))
_LOCK = select(append_lock.c.number).with_for_update()

# Compiled once: SQLAlchemy's own way from the statement to the driver costs as much as SQLite's work for it.
_SQLITE_INSERT = str(
    insert(events).compile(dialect=sqlite.dialect(), column_keys=("event_type", "payload", "stored_at"))
)

ROWS_TOGETHER = 16
"""Rows in one INSERT of SQLite: for each statement the driver works as long as SQLite for a row."""

# The first row of a batch gets its number from AUTOINCREMENT, the others are given theirs: which row of a statement
# comes first, SQLite does not promise.
_SQLITE_INSERT_NUMBERED = insert_into(events)
_SQLITE_INSERT_TOGETHER = DriverStatement(
    insert(events).values(
        [{name: bindparam(f"{name}_{row}") for name in events.columns} for row in range(ROWS_TOGETHER)]
    ),
    [f"{name}_{row}" for row in range(ROWS_TOGETHER) for name in events.columns],
)

MESSAGE_CHARACTERS = 50_000_000
"""Text in one statement to PostgreSQL, which takes messages of up to 1 GB."""


def _in_postgresql(statement: ClauseElement, *, literal_binds: bool = False) -> str:
    dialect = postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    # psycopg sends a list as text unless told otherwise, which takes several times as long.
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": literal_binds})).replace("%s", "%b")


def _insert_arrays() -> ClauseElement:
    """An INSERT of two arrays of columns, numbered on from the last row, that returns the first number."""
    columns = [bindparam(name, type_=postgresql.ARRAY(Text)) for name in ("event_types", "payloads")]
    added = (
        func.unnest(*columns)
        .table_valued("event_type", "payload", with_ordinality="place", name="added")
        .render_derived()
    )
    last = _LAST.scalar_subquery()
    rows = select(bindparam("stored_at", type_=Text), last + added.c.place, added.c.event_type, added.c.payload)
    inserted = insert(events).from_select(["stored_at", "sequence", "event_type", "payload"], rows)
    stored = inserted.returning(events.c.sequence).cte("stored")
    return select(func.min(stored.c.sequence))


# Whatever the server's default is: otherwise the transaction could see the log as it was before it got the lock.
_POSTGRESQL_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_POSTGRESQL_LOCK = _in_postgresql(_LOCK)
_POSTGRESQL_LAST = _in_postgresql(_LAST)
_POSTGRESQL_INSERT = _in_postgresql(_insert_arrays())


@cache
def _limited_lock(seconds: float | None) -> str:
    return _in_postgresql(_LOCK.where(limited(seconds)), literal_binds=True)


def connect_to_append(engine: Engine) -> Connection:
    """Returns a connection for `LogEnd.begin`."""
    if engine.dialect.name == "sqlite":
        return engine.connect()
    # The driver then sends no BEGIN of its own, which is a round trip more.
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


class LogEnd:
    """The end of the log in one transaction; nobody else can append until that ends.

    A sequence of PostgreSQL hands out numbers before commit, and loses those of transactions that fail. So
    appenders take turns by the lock of a row, and count on from what is committed. In SQLite they do so anyway.

    Attributes:
        connection: The one whose transaction it is.
    """

    def __init__(self, connection: Connection, opening: Sequence[str]) -> None:
        self.connection = connection
        self._opening = opening
        self._last: int | None = None

    @classmethod
    def begin(cls, connection: Connection) -> Self:
        """Begins the transaction on a connection of `connect_to_append`.

        On a server, it waits for other appenders with the first thing that is done here: one round trip for all.
        """
        if connection.dialect.name == "sqlite":
            begin_writing(connection)
            return cls(connection, [])
        connection.begin()
        return cls(connection, [_POSTGRESQL_BEGIN, _limited_lock(lock_timeout_of(connection))])

    @classmethod
    def join(cls, connection: Connection) -> Self:
        """Waits for other appenders in the transaction that the connection is in, or begins."""
        begin_writing(connection)
        if connection.dialect.name == "sqlite":
            return cls(connection, [])
        end = cls(connection, [_POSTGRESQL_LOCK])
        end.wait()
        return end

    def wait(self) -> None:
        """Waits for other appenders, if that was not done: what they did can then be read."""
        if self._opening:
            self._last = self._run(_POSTGRESQL_LAST)

    @property
    def is_awaited(self) -> bool:
        """Whether other appenders are, or were in vain."""
        return bool(self._opening)

    @property
    def last(self) -> int:
        """The sequence of the last event, 0 for an empty log."""
        if self._last is None:
            self.wait()
        if self._last is None:
            self._last = self.connection.scalars(_LAST).one()
        return self._last

    def add(self, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
        """Stores at least one event, of which two columns are given.

        Returns:
            The sequence of the first, the others following without a gap, and the moment they were stored.
        """
        moment = datetime.now(UTC)
        stored_at = format_timestamp(moment)
        if self.connection.dialect.name == "sqlite":
            # The write lock is held: nobody comes between these rows, and no number is lost when they are undone.
            cursor = self.connection.connection.cursor()
            cursor.execute(_SQLITE_INSERT, (event_types[0], payloads[0], stored_at))
            first: int = cursor.lastrowid
            cursor.close()
            if len(payloads) > 1:
                self._add_others(first + 1, event_types[1:], payloads[1:], stored_at)
            self._last = first + len(payloads) - 1
            return first, moment
        firsts = [
            self._run(_POSTGRESQL_INSERT, (stored_at, event_types[some], payloads[some])) for some in _slices(payloads)
        ]
        self._last = firsts[0] + len(payloads) - 1
        return firsts[0], moment

    def _add_others(self, first: int, event_types: Sequence[str], payloads: Sequence[str], stored_at: str) -> None:
        rows = [*zip(count(first), event_types, payloads, repeat(stored_at))]
        together = len(rows) - len(rows) % ROWS_TOGETHER
        groups = [[*chain.from_iterable(rows[at : at + ROWS_TOGETHER])] for at in range(0, together, ROWS_TOGETHER)]
        _SQLITE_INSERT_TOGETHER.run(self.connection, groups)
        _SQLITE_INSERT_NUMBERED.run(self.connection, rows[together:])

    def _run(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Returns the only value of the statement; what opens the transaction goes before it."""
        with _in_one_round_trip(self.connection):
            for earlier in self._opening:
                with closing(self.connection.connection.cursor()) as cursor:
                    cursor.execute(earlier)
            cursor = self.connection.connection.cursor()
            cursor.execute(statement, parameters)
        self._opening = []
        with closing(cursor):
            value: int = cursor.fetchall()[0][0]
            return value


def _in_one_round_trip(connection: Connection) -> AbstractContextManager[object]:
    """The server still does one after the other, and a statement sees what the one before it had to wait for."""
    from psycopg import Pipeline  # there with a connection to PostgreSQL

    if connection.dialect.is_async or not Pipeline.is_supported():  # SQLAlchemy's adapter has none, nor an old libpq
        return nullcontext()
    driver: Any = connection.connection.dbapi_connection
    pipeline: AbstractContextManager[object] = driver.pipeline()
    return pipeline


def _slices(payloads: Sequence[str]) -> Iterator[slice]:
    start = characters = 0
    for index, payload in enumerate(payloads):
        if characters > MESSAGE_CHARACTERS:
            yield slice(start, index)
            start, characters = index, 0
        characters += len(payload)
    yield slice(start, len(payloads))
