"""The position of each projection in the log, and the events that it could not apply."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Table, bindparam, delete, insert, select, update

from peon.persistence.backends.compiled import CompiledQuery, CompiledStatement, insert_into
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.errors import ProjectionsTooNew
from peon.persistence.projections.base import Projection
from peon.persistence.schema import projection_positions, projection_problems

_ADVANCE = CompiledStatement(
    update(projection_positions)
    .where(
        projection_positions.c.name == bindparam("of_name"),
        projection_positions.c.version == bindparam("of_version"),
        projection_positions.c.sequence == bindparam("before"),
    )
    .values(sequence=bindparam("last")),
    ["last", "of_name", "of_version", "before"],
)

_POSITION = CompiledQuery(
    select(projection_positions.c.version, projection_positions.c.sequence).where(
        projection_positions.c.name == bindparam("of_name")
    ),
    ["of_name"],
)

_INSERT_PROBLEM = insert_into(projection_problems)


class Position(NamedTuple):
    """The sequence of the last event that was applied, and the version of the projection's code that applied it."""

    version: int
    sequence: int


class Problem(NamedTuple):
    """A stored event that a projection could not apply.

    Attributes:
        projection: The projection's name.
        sequence: The event's place in the log.
        event_type: The value of its `event_type` column.
        reason: What it contradicts, or why it cannot be decoded.
    """

    projection: str
    sequence: int
    event_type: str
    reason: str


def advance(connection: Connection, projections: Sequence[Projection], before: int, last: int) -> int:
    """Moves the projections whose position is `before` to `last`, and returns how many those were."""
    return _ADVANCE.run(connection, [(last, projection.name, projection.version, before) for projection in projections])


def position_of(connection: Connection, projection: Projection) -> Position | None:
    """Returns the position; `None` for a projection that has never run."""
    rows = _POSITION.rows(connection, projection.name)
    return Position(*rows[0]) if rows else None


def require_not_newer(engine: Engine, projection: Projection, position: Position | None) -> None:
    """Raises `ProjectionsTooNew` if a newer version of the code has built the projection."""
    if position is not None and position.version > projection.version:
        raise ProjectionsTooNew(
            projection.name, database=database_name(engine), found=position.version, expected=projection.version
        )


def set_position(connection: Connection, projection: Projection, sequence: int) -> None:
    connection.execute(delete(projection_positions).where(projection_positions.c.name == projection.name))
    connection.execute(
        insert(projection_positions).values(name=projection.name, version=projection.version, sequence=sequence)
    )


def add_problems(connection: Connection, problems: Sequence[Problem]) -> None:
    _INSERT_PROBLEM.run(connection, problems)


def types_recorded_with(connection: Connection, projection: Projection, reason: str) -> set[str]:
    """Returns the types of the events that the projection could not apply for a reason."""
    columns = projection_problems.c
    types = select(columns.event_type).distinct()
    return {*connection.scalars(types.where(columns.projection == projection.name, columns.reason == reason))}


def problems_of(connection: Connection, projection: Projection, problems: Table = projection_problems) -> list[Problem]:
    """Returns what the projection could not apply.

    Args:
        problems: The table, where another one hides it.
    """
    columns = problems.c
    query = (
        select(columns.projection, columns.sequence, columns.event_type, columns.reason)
        .where(columns.projection == projection.name)
        .order_by(columns.sequence)
    )
    return [Problem(*row) for row in connection.execute(query)]
