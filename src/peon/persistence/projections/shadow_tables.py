"""Tables that hide others of the same names, on one connection, until they are dropped.

SQLite and PostgreSQL both look for a name among the temporary tables first. So what writes the tables of a
projection writes the shadows instead, unchanged, and nobody else sees it.

On PostgreSQL they end with their transaction: behind a pooler, the next one may be on another session of the server.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.schema import DropTable

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.interface import READ_ONLY


class Shadows(NamedTuple):
    """Each table's shadow, and the table that it hides, parents first."""

    shadows: list[Table]
    hidden: list[Table]


@contextmanager
def shadowed(connection: Connection, tables: Sequence[Table]) -> Iterator[Shadows]:
    """Puts an empty shadow before each table. At the end it rolls back what was not committed, and drops them."""
    backend = backend_of(connection)
    pair = Shadows(_copies(tables, backend.temporary_schema), _copies(tables, backend.schema_of_log(connection)))
    with backend.nothing_prepared(connection):
        try:
            for shadow in pair.shadows:
                _keep_indexes_of_foreign_keys(shadow)
                shadow.dialect_options["postgresql"]["on_commit"] = "DROP"
                shadow.create(connection, checkfirst=False)
            yield pair
        finally:
            _remove(pair.shadows, connection)


def _remove(shadows: Sequence[Table], connection: Connection) -> None:
    try:
        connection.rollback()
        if not backend_of(connection).temporary_tables_end_with_transaction:
            connection.execution_options(**{READ_ONLY: True})  # temporary tables need no turn at the write lock
            for shadow in reversed(shadows):
                connection.execute(DropTable(shadow, if_exists=True))
            connection.commit()
    except BaseException:
        # Whoever got the connection next would read the shadows. In memory, it is the database.
        if not is_memory(connection.engine.url):
            connection.invalidate()
        raise


def _copies(tables: Sequence[Table], schema: str) -> list[Table]:
    metadata = MetaData(naming_convention=tables[0].metadata.naming_convention)
    for table in tables:
        table.to_metadata(metadata, schema=schema)
    return metadata.sorted_tables


def _keep_indexes_of_foreign_keys(table: Table) -> None:
    """The others serve readers, which shadows have none of, and cost a sixth of a rebuild."""
    kept = set()
    for index in sorted(table.indexes, key=lambda index: len(index.columns)):
        column = next(iter(index.columns))
        if column.foreign_keys and column.name not in kept:
            kept.add(column.name)
        else:
            table.indexes.discard(index)
