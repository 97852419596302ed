"""Core statements that are compiled once for each database system, and executed as text.

They are for what runs with every append. After the wait for a commit, SQLAlchemy's code that prepares a Core statement
is no longer in the processor's caches, and takes several times as long as SQLite needs for the statement itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Column, ColumnElement, Connection, Table, bindparam, insert, select
from sqlalchemy.engine.interfaces import Dialect

from peon.persistence.runtime.sqlalchemy_internals import (
    can_skip_execution_context,
    positional_names,
    raise_driver_error,
)

MAXIMUM_KEYS = 512
"""Values in one IN list."""


class CompiledStatement:
    """A statement that changes rows.

    Args:
        statement: With a `bindparam` for each parameter.
        parameters: The names of the parameters, in the order in which the rows have their values.
    """

    def __init__(self, statement: ClauseElement, parameters: Sequence[str]) -> None:
        self._statement = statement
        self._parameters = list(parameters)
        self._texts: dict[str, str] = {}

    def run(self, connection: Connection, rows: Sequence[Sequence[object]]) -> int:
        """Executes the statement for each row of parameters; returns the number of rows of the table that changed."""
        if not rows:
            return 0
        dialect = connection.dialect
        text = self._texts.get(dialect.name) or self._compile(dialect)
        if not can_skip_execution_context(connection):
            return connection.exec_driver_sql(text, [tuple(row) for row in rows]).rowcount
        cursor = _executed(connection, text, rows)
        changed: int = cursor.rowcount
        cursor.close()
        return changed

    def _compile(self, dialect: Dialect) -> str:
        text = _compile(self._statement, dialect, self._parameters)
        self._texts[dialect.name] = text
        return text


def insert_into(table: Table) -> CompiledStatement:
    """Returns the statement that inserts rows with all columns, in the order of the table."""
    return CompiledStatement(insert(table), [column.name for column in table.columns])


class CompiledQuery:
    """A query. See `CompiledStatement` for the arguments."""

    def __init__(self, query: ClauseElement, parameters: Sequence[str]) -> None:
        self._query = query
        self._parameters = list(parameters)
        self._texts: dict[str, str] = {}

    def rows(self, connection: Connection, *parameters: object) -> list[tuple[Any, ...]]:
        dialect = connection.dialect
        text = self._texts.get(dialect.name)
        if text is None:
            text = self._texts[dialect.name] = _compile(self._query, dialect, self._parameters)
        return _fetch(connection, text, parameters)


class KeyedQuery:
    """A query for the rows whose `key` is one of any number of values."""

    def __init__(self, key: Column[str], *columns: ColumnElement[Any]) -> None:
        self._key = key
        self._columns = columns
        self._queries: dict[int, CompiledQuery] = {}

    def rows(self, connection: Connection, values: Iterable[str]) -> list[tuple[Any, ...]]:
        """Returns the rows, in any order."""
        remaining = list(values)
        found: list[tuple[Any, ...]] = []
        while remaining:
            some, remaining = remaining[:MAXIMUM_KEYS], remaining[MAXIMUM_KEYS:]
            # Filled up to a power of two, so that only few statements have to be compiled and prepared.
            count = 1 << (len(some) - 1).bit_length()
            some += some[-1:] * (count - len(some))
            query = self._queries.get(count) or self._of_size(count)
            found += query.rows(connection, *some)
        return found

    def _of_size(self, count: int) -> CompiledQuery:
        names = [f"key_{number}" for number in range(count)]
        condition = self._key.in_([bindparam(name, type_=self._key.type) for name in names])
        query = self._queries[count] = CompiledQuery(select(*self._columns).where(condition), names)
        return query


def _compile(statement: ClauseElement, dialect: Dialect, parameters: list[str]) -> str:
    style = "qmark" if dialect.name == "sqlite" else "format"
    positional = type(dialect)(paramstyle=style)  # type: ignore[call-arg]
    compiled = statement.compile(
        dialect=positional, column_keys=parameters, compile_kwargs={"render_postcompile": True}
    )
    if (names := positional_names(compiled)) != parameters:
        raise TypeError(f"the statement takes its parameters in the order {names}")
    return str(compiled)


def insert_one(connection: Connection, text: str, parameters: Sequence[object]) -> int:
    """Executes an INSERT of one row, and returns the number of the row that SQLite has assigned."""
    if not can_skip_execution_context(connection):
        return connection.exec_driver_sql(text, tuple(parameters)).lastrowid
    cursor = _executed(connection, text, [parameters])
    number: int = cursor.lastrowid
    cursor.close()
    return number


def _fetch(connection: Connection, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    if can_skip_execution_context(connection):
        cursor = _executed(connection, text, [parameters])
        try:
            return list(cursor.fetchall())
        finally:
            cursor.close()
    with connection.exec_driver_sql(text, tuple(parameters)) as result:
        # From the driver's cursor: SQLAlchemy's rows take longer to build than the driver's to read.
        return list(result.cursor.fetchall())


def _executed(connection: Connection, text: str, rows: Sequence[Sequence[object]]) -> Any:
    """Returns a cursor of the driver that has executed the statement for each row of parameters.

    It raises what `exec_driver_sql` raises.
    """
    driver = connection.connection  # refuses a connection that is closed
    cursor: Any = None
    try:
        cursor = driver.cursor()
        if len(rows) == 1:
            cursor.execute(text, rows[0])
        else:
            cursor.executemany(text, rows)
    except BaseException as error:
        raise_driver_error(connection, error, cursor, text, tuple(rows[0]) if len(rows) == 1 else rows)
    return cursor
