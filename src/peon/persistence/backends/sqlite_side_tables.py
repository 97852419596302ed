"""Side tables in an SQLite file, whose rows are exchanged with those of the real tables in no time.

A row of `sqlite_schema` says on which page the content of a table or an index begins. Two tables of the same shape
exchange their rows if these numbers are exchanged: names, foreign keys, triggers, views and other indexes stay as they
are. Renaming could not do that, because an index cannot be renamed. All of it is undone if the transaction is rolled
back.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Table,
    bindparam,
    delete,
    insert,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from peon.persistence.backends.compiled import CompiledQuery, CompiledStatement
from peon.persistence.backends.side_tables import SIDE_PREFIX, SideTables, TablesChanged
from peon.persistence.backends.sqlite_connections import driver_connection
from peon.persistence.backends.sqlite_driver import first_row

ROWS_A_STATEMENT = 200
"""Rows that are copied or deleted by one statement. Their keys are random, so that each may be on a page of its own."""

_OBJECTS = (
    "SELECT type, name, tbl_name, sql, rootpage FROM main.sqlite_master WHERE type IN ('table', 'index') ORDER BY rowid"
)
_AUTOMATIC = "sqlite_autoindex_"


class _Object(NamedTuple):
    """A table or an index. `sql` is what it was created with; `None` for the index of a constraint."""

    type: str
    name: str
    table: str
    sql: str | None
    rootpage: int


class SQLiteSideTables(SideTables):
    """See `SideTables`."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._names = [table.name for table in tables]
        metadata = MetaData()
        self._sides = [table.to_metadata(metadata, schema="main", name=SIDE_PREFIX + table.name) for table in tables]

    def are_created_as(self, connection: Connection, declared: Sequence[Table]) -> bool:
        dialect = connection.dialect
        expected = [CreateTable(table).compile(dialect=dialect) for table in declared]
        expected += [CreateIndex(index).compile(dialect=dialect) for table in declared for index in table.indexes]
        names = {table.name for table in declared}
        found = [each.sql for each in self._of(connection, "") if each.table in names and each.sql is not None]
        return sorted(_words(sql) for sql in found) == sorted(_words(str(statement)) for statement in expected)

    def create(self, connection: Connection) -> None:
        for each in self._of(connection, ""):
            if each.sql is not None:
                connection.exec_driver_sql(self._for_side(each))

    def copy(self, connection: Connection, sources: Sequence[Table]) -> Iterator[None]:
        for source, side in zip(sources, self._sides, strict=True):
            first, rest = _Copy(source, side, after=False), _Copy(source, side, after=True)
            last = first.run(connection)
            yield
            while last is not None:
                last = rest.run(connection, last)
                yield

    def exchange(self, connection: Connection) -> None:
        side_of = {each.name: each for each in self._of(connection, SIDE_PREFIX)}
        pairs: list[tuple[_Object, _Object]] = []
        for each in self._of(connection, ""):
            side = side_of.pop(self._name_for_side(each), None)
            if side is None or side.sql != (each.sql and self._for_side(each)):
                raise TablesChanged
            pairs.append((each, side))
        if side_of or not pairs:
            raise TablesChanged
        connection.exec_driver_sql("PRAGMA writable_schema = ON")
        try:
            rows = [(b.rootpage, a.type, a.name) for pair in pairs for a, b in (pair, pair[::-1])]
            change = "UPDATE main.sqlite_master SET rootpage = ? WHERE type = ? AND name = ?"
            connection.exec_driver_sql(change, rows)
            # Other connections compare this number, and then look up the tables again.
            version: int = connection.exec_driver_sql("PRAGMA main.schema_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA main.schema_version = {version + 1}")
        finally:
            connection.exec_driver_sql("PRAGMA writable_schema = RESET")  # off; tables are looked up again

    def empty(self, connection: Connection) -> Iterator[None]:
        # DROP TABLE and a DELETE of all rows read each page of the table, in one statement.
        found = {each.name for each in self._of(connection, SIDE_PREFIX)}
        for side in reversed(self._sides):
            if side.name not in found:
                continue
            key = _key(side)
            bounds = _parameters("before", key)
            ends = CompiledQuery(_key_at(ROWS_A_STATEMENT, side), [])
            some = CompiledStatement(delete(side).where(tuple_(*key) < tuple_(*bounds)), [each.key for each in bounds])
            while end := ends.rows(connection):
                some.run(connection, end)
                yield
            connection.exec_driver_sql(f'DROP TABLE main."{side.name}"')
            yield

    def flush(self, connection: Connection) -> None:
        # A checkpoint syncs the file only when it has written all of the log, which it seldom does while others append.
        # This one keeps them from appending; without a timeout, it does not wait for readers while it does so.
        driver = driver_connection(connection)
        (timeout,) = first_row(driver, "PRAGMA busy_timeout")
        try:
            driver.execute("PRAGMA busy_timeout = 0")
            with suppress(sqlite3.OperationalError):  # the disk is full, for example: the next writer reports it
                first_row(driver, "PRAGMA main.wal_checkpoint(FULL)")
        finally:
            driver.execute(f"PRAGMA busy_timeout = {timeout}")

    def forget(self, connection: Connection) -> None:
        names = [(side.name,) for side in self._sides]
        connection.exec_driver_sql("PRAGMA writable_schema = ON")
        try:
            connection.exec_driver_sql("DELETE FROM main.sqlite_master WHERE tbl_name = ?", names)
        finally:
            connection.exec_driver_sql("PRAGMA writable_schema = RESET")

    @contextmanager
    def writing(self, connection: Connection) -> Iterator[None]:
        driver = driver_connection(connection)
        try:
            driver.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction
            yield
        finally:
            _restore(connection, driver, "PRAGMA foreign_keys = ON")  # another user of the connection relies on them

    @contextmanager
    def exchanging(self, connection: Connection) -> Iterator[None]:
        driver = driver_connection(connection)
        try:
            yield
        except BaseException:
            # The connection has looked up the exchanged tables. By the number of the schema alone it would not notice
            # that they are none any more, if another connection changes the schema meanwhile.
            _restore(connection, driver, "PRAGMA writable_schema = RESET")
            raise

    def _of(self, connection: Connection, prefix: str) -> list[_Object]:
        """Returns the tables and then their indexes."""
        names = [prefix + name for name in self._names]
        found = [_Object(*row) for row in connection.exec_driver_sql(_OBJECTS)]
        return sorted((each for each in found if each.table in names), key=lambda each: each.type != "table")

    def _name_for_side(self, each: _Object) -> str:
        if each.sql is None:
            return each.name.replace(_AUTOMATIC, _AUTOMATIC + SIDE_PREFIX, 1)
        return SIDE_PREFIX + each.name

    def _for_side(self, each: _Object) -> str:
        """Returns the statement that creates the same object for the side table."""
        sql = _renamed(each.sql or "", r"^CREATE (?:TABLE|INDEX|UNIQUE INDEX) ", each.name)
        if each.type == "index":
            return _renamed(sql, r"^CREATE (?:UNIQUE )?INDEX \S+ ON ", each.table)
        for name in self._names:
            sql = _renamed(sql, r"\bREFERENCES ", name, anywhere=True)
        return sql


class _Copy:
    """Copies rows in the order of their key, `ROWS_A_STATEMENT` at once.

    Args:
        after: Whether it copies the rows after a key, or the first ones.
    """

    def __init__(self, source: Table, side: Table, *, after: bool) -> None:
        key, names = _key(source), [column.name for column in side.columns]
        lower, upper = _parameters("after", key) if after else [], _parameters("last", key)
        of_lower, of_upper = ([each.key for each in bounds] for bounds in (lower, upper))
        remaining = [tuple_(*key) > tuple_(*lower)] if after else []
        rows = select(*(source.c[name] for name in names)).where(*remaining).order_by(*key)
        some = rows.where(tuple_(*key) <= tuple_(*upper))
        self._last = CompiledQuery(_key_at(ROWS_A_STATEMENT - 1, source, *remaining), of_lower)
        self._copy_some = CompiledStatement(insert(side).from_select(names, some), [*of_lower, *of_upper])
        self._copy_rest = CompiledStatement(insert(side).from_select(names, rows), of_lower)

    def run(self, connection: Connection, after: tuple[object, ...] = ()) -> tuple[object, ...] | None:
        """Returns the key of the last row that it has copied; `None` after the last one of the table."""
        found = self._last.rows(connection, *after)
        if not found:
            self._copy_rest.run(connection, [after])
            return None
        self._copy_some.run(connection, [(*after, *found[0])])
        return found[0]


def is_available(connection: Connection, tables: Sequence[Table]) -> bool:
    """Returns whether the build of SQLite lets the schema be changed, and the tables are declared as is usual."""
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    try:
        if not connection.exec_driver_sql("PRAGMA writable_schema").scalar():
            return False
    finally:
        connection.exec_driver_sql("PRAGMA writable_schema = OFF")
    side = SQLiteSideTables(tables)
    try:
        for each in side._of(connection, ""):
            if each.sql is not None:
                side._for_side(each)
    except TablesChanged:
        return False
    return True


def _restore(connection: Connection, driver: sqlite3.Connection, pragma: str) -> None:
    """Rolls back, and sets what another user of the connection relies on."""
    try:
        connection.rollback()
        with suppress(sqlite3.ProgrammingError):  # an interrupt in the middle of a statement closes the connection
            driver.execute(pragma)
    except BaseException:
        connection.invalidate()
        raise


def _words(sql: str) -> list[str]:
    return sql.split()


def _key(table: Table) -> list[ColumnElement[object]]:
    """Returns the columns by which the rows are stored."""
    if table.dialect_options["sqlite"]["with_rowid"]:
        name = next(name for name in ("rowid", "_rowid_", "oid") if name not in table.c)
        return [literal_column(name)]
    return list(table.primary_key.columns)


def _parameters(prefix: str, key: Sequence[ColumnElement[object]]) -> list[BindParameter[object]]:
    return [bindparam(f"{prefix}_{number}") for number in range(len(key))]


def _key_at(place: int, table: Table, *conditions: ColumnElement[bool]) -> ClauseElement:
    """Returns the query for the key of one of the rows that meet the conditions, in the order of their keys."""
    key = _key(table)
    keys = select(*key).select_from(table).where(*conditions).order_by(*key)
    # Literals, because compiled statements have only the parameters that their rows give.
    return keys.limit(literal_column("1", Integer)).offset(literal_column(str(place), Integer))


def _renamed(sql: str, before: str, name: str, *, anywhere: bool = False) -> str:
    """Adds the prefix to a name that stands after a pattern.

    Raises:
        TablesChanged: It does not stand there.
    """
    quoted = re.escape(name)
    pattern = rf'({before})(?:"{quoted}"|\[{quoted}\]|`{quoted}`|{quoted}(?!\w))'
    renamed, count = re.subn(pattern, rf'\g<1>"{SIDE_PREFIX}{name}"', sql, count=0 if anywhere else 1)
    if not count and not anywhere:
        raise TablesChanged
    return renamed
