"""Creates, empties and replaces the tables of projections, and checks what projections declare."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from sqlalchemy import Connection, Table, delete, exists, insert, select
from sqlalchemy.schema import DropTable

from peon.persistence import schema
from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import CompiledQuery
from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import Position
from peon.persistence.projections.shadow_tables import Shadows, declared_in_log
from peon.persistence.projections.table_shape import are_as_declared


def check(projections: Sequence[Projection]) -> None:
    """Raises `ValueError` for projections that conflict, and `TypeError` for objects that are not projections."""
    for projection in projections:
        if not isinstance(projection, Projection):
            raise TypeError(f"{projection!r} is not a projection: give an instance of a subclass of Projection")
        if problem := next(_problems(projection), None):
            raise ValueError(f"projection {type(projection).__name__}: {problem}")
    names = [projection.name for projection in projections]
    if len(set(names)) < len(names):
        raise ValueError(f"two projections have the same name: {', '.join(names)}")
    taken = set(schema.metadata.tables)
    for projection in projections:
        own = _own_table_names(projection)
        if own & taken:
            raise ValueError(f"projection {projection.name} has a table of another: {', '.join(own & taken)}")
        taken |= own


def _problems(projection: Projection) -> Iterator[str]:
    if not isinstance(getattr(projection, "name", None), str) or not projection.name:
        yield "its name is a text"
    if type(getattr(projection, "version", None)) is not int:
        yield "its version is an integer"
    tables = getattr(projection, "tables", ())
    if not isinstance(tables, list | tuple) or not tables or not all(isinstance(table, Table) for table in tables):
        yield "its tables are a tuple of Table, with at least one"
        return
    if len({id(table.metadata) for table in projection.tables}) > 1:
        yield "its tables are of more than one MetaData"
    for table in projection.tables:
        if table.schema is not None:
            yield f"{table} has a schema, and would not be found where it is rebuilt"
        # Tables of other projections are emptied and filled at other times.
        own = {table.name for table in projection.tables}
        for key in table.foreign_keys:
            if key.target_fullname.rpartition(".")[0] not in own:
                yield f"{key.parent} refers to {key.target_fullname}, which is not in a table of its own"
        # Numbers that the database assigns depend on more than the events.
        if table.autoincrement_column is not None:
            yield f"{table.autoincrement_column} counts by itself: give it autoincrement=False, and a number"


def is_migrated(table: Table) -> bool:
    """Returns whether a migration creates the table."""
    return table.metadata is schema.metadata


def is_filled(connection: Connection, projection: Projection) -> bool:
    """Returns whether a table of the projection holds a row."""
    return any(_has_rows(table).rows(connection)[0][0] for table in projection.tables)


@lru_cache(maxsize=64)  # compiled once: it is asked for each table whenever a database without events is opened
def _has_rows(table: Table) -> CompiledQuery:
    return CompiledQuery(select(exists(select(1).select_from(table))), [])


def prepare(connection: Connection, projection: Projection) -> None:
    """Empties the tables and the problems of a projection; creates the tables that no migration creates."""
    own = _own_table_names(projection)
    in_order = [table for table in projection.tables[0].metadata.sorted_tables if table in projection.tables]
    for table in reversed(in_order):
        # They may exist with other columns than they have now.
        connection.execute(DropTable(table, if_exists=True) if table.name in own else delete(table))
    for table in in_order:
        if table.name in own:
            table.create(connection, checkfirst=False)
    _delete_problems(connection, projection, schema.projection_problems)


def unreadable_tables(connection: Connection, projection: Projection) -> set[str]:
    """Returns the names of the tables that are missing or damaged, of the projection or of its records."""
    tables = [*projection.tables, schema.projection_positions, schema.projection_problems]
    backend = backend_of(connection)
    return {t.name for t in declared_in_log(connection, tables) if not backend.is_readable(connection, t)}


def recreate(connection: Connection, projection: Projection, pair: Shadows, unreadable: set[str]) -> None:
    """Creates the hidden tables again, whatever state they are in, instead of emptying them.

    The positions and problems of other projections are lost if their table is unusable. A projection without a
    position is built from the log at the next start-up of an application that has it.

    Args:
        unreadable: See `unreadable_tables`; found in an earlier transaction.
    """
    discard = backend_of(connection).discard_table
    records = declared_in_log(connection, [schema.projection_positions, schema.projection_problems])
    unusable = [t for t in records if t.name in unreadable or not are_as_declared(connection, [t])]
    of_projection = [table for table in pair.hidden if table.name != schema.projection_problems.name]
    for table in [*unusable, *reversed(of_projection)]:
        discard(connection, table, readable=table.name not in unreadable)
    for table in [*unusable, *of_projection]:
        table.create(connection, checkfirst=False)
    (problems,) = [table for table in pair.hidden if table.name == schema.projection_problems.name]
    _delete_problems(connection, projection, problems)


def tables_to_empty(projection: Projection, version: int | None) -> list[Table]:
    """Returns the tables that a rebuild keeps; the others are created again.

    Args:
        version: The version of the code that has built the tables; `None` if none has.
    """
    return [table for table in projection.tables if is_migrated(table) or version == projection.version]


def empty(connection: Connection, projection: Projection, pair: Shadows, *, version: int | None) -> None:
    """Empties the hidden tables, or creates them again.

    Args:
        version: See `tables_to_empty`.
    """
    kept = {table.name for table in tables_to_empty(projection, version)}
    for table in reversed(pair.hidden):
        if table.name == schema.projection_problems.name:
            _delete_problems(connection, projection, table)
        elif table.name in kept:
            connection.execute(delete(table))
        else:
            connection.execute(DropTable(table, if_exists=True))
    for table in pair.hidden:
        if table.name not in kept and table.name != schema.projection_problems.name:
            table.create(connection, checkfirst=False)


def fill(connection: Connection, projection: Projection, pair: Shadows) -> None:
    """Copies the rows of the shadow tables into the hidden tables."""
    for shadow, table in zip(pair.shadows, pair.hidden, strict=True):
        columns = [column.name for column in table.columns]
        rows = select(shadow)
        if table.name == schema.projection_problems.name:
            rows = rows.where(shadow.c.projection == projection.name)
        connection.execute(insert(table).from_select(columns, rows))


def part_of(projection: Projection, pair: Shadows) -> Shadows:
    """Returns the tables of one of several projections, and that of the problems."""
    names = {schema.projection_problems.name, *(table.name for table in projection.tables)}
    return Shadows(*([table for table in tables if table.name in names] for tables in pair))


def replace_problems(connection: Connection, projection: Projection, pair: Shadows) -> None:
    """Replaces the problems of the projection by those of the shadow table, which still hides their table."""
    for shadow, table in zip(pair.shadows, pair.hidden, strict=True):
        if table.name == schema.projection_problems.name:
            _delete_problems(connection, projection, table)
            connection.execute(insert(table).from_select([column.name for column in table.columns], select(shadow)))


def _delete_problems(connection: Connection, projection: Projection, problems: Table) -> None:
    connection.execute(delete(problems).where(problems.c.projection == projection.name))


def _own_table_names(projection: Projection) -> set[str]:
    """Returns the names of the tables that no migration creates."""
    return {table.name for table in projection.tables if not is_migrated(table)}


def reason_to_rebuild(
    connection: Connection, projection: Projection, position: Position | None, end: int
) -> str | None:
    """Returns why the tables cannot be brought up to date from the position, if so.

    A position that does not belong to the tables comes from a restore of some of the tables. The signs that cost
    nothing are looked for; a position in the middle of the log has none.
    """
    if position is None:
        return None  # whatever the tables hold is removed first
    if position.version != projection.version:
        return f"its version {position.version} has built it, and the present version is {projection.version}"
    if position.sequence > end:
        return f"it has applied events up to {position.sequence}, but the log ended at {end}: events were removed"
    if position.sequence == 0 and is_filled(connection, projection):
        return "its tables are filled although it has applied no event"
    return None
