"""The tables of projections: those that revisions create, and those that come and go with a projection."""

from collections.abc import Sequence

from sqlalchemy import Connection, Table, delete, insert, select
from sqlalchemy.schema import DropTable

from peon.persistence import schema
from peon.persistence.projections.projection import Projection
from peon.persistence.projections.shadow import Shadows


def check(projections: Sequence[Projection]) -> None:
    names = [projection.name for projection in projections]
    if len(set(names)) < len(names):
        raise ValueError(f"two projections have the same name: {', '.join(names)}")
    taken = set(schema.metadata.tables)
    for projection in projections:
        if not projection.tables:
            raise ValueError(f"projection {projection.name} has no tables")
        for table in projection.tables:
            # The tables of others are emptied and filled at other times than these.
            for key in table.foreign_keys:
                if key.column.table not in projection.tables:
                    raise ValueError(
                        f"{key.parent} of projection {projection.name} refers to {key.column}: "
                        "a projection refers to its own tables only"
                    )
        own = _names_of_own(projection)
        if own & taken:
            raise ValueError(f"projection {projection.name} has a table of another: {', '.join(own & taken)}")
        taken |= own


def is_migrated(table: Table) -> bool:
    """Returns whether a revision creates it."""
    return table.metadata is schema.metadata


def prepare(connection: Connection, projection: Projection) -> None:
    """Makes its tables empty; creates those that no revision does, as they may have other columns than they had."""
    in_order = [table for table in projection.tables[0].metadata.sorted_tables if table in projection.tables]
    for table in reversed(in_order):
        _remove(connection, table, projection)
    for table in in_order:
        if not is_migrated(table):
            table.create(connection, checkfirst=False)


def replace(connection: Connection, projection: Projection, pair: Shadows) -> None:
    """Puts the rows of the shadows in the place of those of the hidden tables."""
    for table in reversed(pair.hidden):
        _remove(connection, table, projection)
    own = _names_of_own(projection)
    for shadow, table in zip(pair.shadows, pair.hidden, strict=True):
        if table.name in own:
            table.create(connection, checkfirst=False)
        columns = [column.name for column in table.columns]
        connection.execute(insert(table).from_select(columns, select(shadow)))


def _remove(connection: Connection, table: Table, projection: Projection) -> None:
    """Removes the table, or its rows where a revision created it, and those of others may be there, too."""
    if table.name in _names_of_own(projection):
        connection.execute(DropTable(table, if_exists=True))
    elif table.name == schema.projection_problems.name:
        connection.execute(delete(table).where(table.c.projection == projection.name))
    else:
        connection.execute(delete(table))


def _names_of_own(projection: Projection) -> set[str]:
    return {table.name for table in projection.tables if not is_migrated(table)}
