"""Shadow tables: temporary tables that hide the real ones of the same names, on one connection, until dropped.

SQLite and PostgreSQL both look for a name among the temporary tables first. So the code of a projection writes into
the shadow tables without any change, and no other connection sees it.

On PostgreSQL the shadow tables end with their transaction, because behind a pooler the next transaction may be on
another session of the server.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.schema import DropTable

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.schema.metadata import USED_TO_APPLY


class Shadows(NamedTuple):
    """The shadow tables, and the tables that they hide, in the same order, parents first."""

    shadows: Sequence[Table]
    hidden: Sequence[Table]


@contextmanager
def shadowed(connection: Connection, tables: Sequence[Table]) -> Iterator[Shadows]:
    """Creates an empty shadow table for each table; at the end, rolls back and drops the shadow tables."""
    backend = backend_of(connection)
    pair = Shadows(_shadow_tables(tuple(tables), backend.temporary_schema), declared_in_log(connection, tables))
    with backend.nothing_prepared(connection):
        try:
            for shadow in pair.shadows:
                shadow.create(connection, checkfirst=False)
            yield pair
        finally:
            try:
                _drop(pair.shadows, connection)
            except BaseException:
                # Another user of the connection would read the shadow tables.
                if is_memory(connection.engine.url):  # the connection is the database
                    # To SQLAlchemy, a transaction is over whose BEGIN or ROLLBACK was interrupted.
                    connection.dialect.do_rollback(connection.connection)
                    _drop(pair.shadows, connection)
                else:
                    connection.invalidate()
                raise


def declared_in_log(connection: Connection, tables: Sequence[Table]) -> Sequence[Table]:
    """Returns the tables with the schema that holds the log, parents first: no shadow table hides them."""
    return _hidden_tables(tuple(tables), backend_of(connection).schema_of_log(connection))


def _drop(shadows: Sequence[Table], connection: Connection) -> None:
    connection.rollback()
    if not backend_of(connection).temporary_tables_end_with_transaction:
        connection.execution_options(**{READ_ONLY: True})  # temporary tables do not need the write lock
        for shadow in reversed(shadows):
            connection.execute(DropTable(shadow, if_exists=True))
        connection.commit()


# SQLAlchemy compiles each statement again for a new `Table`: with cached ones, a repeated `verify` of a small log takes
# a third of the time.
@lru_cache(maxsize=16)
def _shadow_tables(tables: tuple[Table, ...], schema: str) -> Sequence[Table]:
    shadows = _copies(tables, schema)
    for shadow in shadows:
        _keep_indexes_to_apply_with(shadow)
        shadow.dialect_options["postgresql"]["on_commit"] = "DROP"
    return shadows


@lru_cache(maxsize=16)
def _hidden_tables(tables: tuple[Table, ...], schema: str) -> Sequence[Table]:
    return _copies(tables, schema)


def _copies(tables: Sequence[Table], schema: str) -> Sequence[Table]:
    metadata = MetaData(naming_convention=tables[0].metadata.naming_convention)
    for table in tables:
        table.to_metadata(metadata, schema=schema)
    return tuple(metadata.sorted_tables)


def _keep_indexes_to_apply_with(table: Table) -> None:
    """Most other indexes only serve readers, which shadow tables do not have, and cost a sixth of a rebuild."""
    kept = set()
    for index in sorted(table.indexes, key=lambda index: len(index.columns)):
        column = next(iter(index.columns))
        if (column.foreign_keys or column.info.get(USED_TO_APPLY)) and column.name not in kept:
            kept.add(column.name)
        else:
            table.indexes.discard(index)
