"""Compares the tables of a projection with what the log says."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import JSON, ColumnElement, Connection, Row, Table, Text, cast, exists, inspect, select

from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import Position, Problem, position_of, problems_of
from peon.persistence.projections.replay import Meter, Replay
from peon.persistence.projections.shadow_tables import shadowed
from peon.persistence.schema import LAST_SEQUENCE, projection_positions, projection_problems


class Difference(NamedTuple):
    """A value in a table that is not what the log says. A missing or extra row differs in each of its columns.

    Attributes:
        table: The name of the table.
        key: The primary key of the row; the values of several columns are separated by `/`.
        column: The name of the column.
        expected: The value after a rebuild; also `None` if there would be no such row.
        found: The present value; also `None` if there is no such row.
    """

    table: str
    key: str
    column: str
    expected: Any
    found: Any


def differences(connection: Connection, projection: Projection, replay: Replay, meter: Meter) -> list[Difference]:
    """Compares the tables with those that a replay fills, in a transaction of the connection that it begins itself."""
    if not connection.in_transaction():
        connection.begin()  # statements that the driver runs do not begin one
    position = position_of(connection, projection)
    found_problems = problems_of(connection, projection)
    end = connection.scalars(LAST_SEQUENCE).one()
    if position is None and end == 0 and not found_problems and _are_empty(connection, projection.tables):
        return []  # migrated, and never opened since
    found = list(_compare_position(projection, end, position))
    if position is None or position.version != projection.version:
        return found  # its tables may have other columns, or not exist
    with shadowed(connection, [*projection.tables, projection_problems]) as pair:
        replay.apply_pages(connection, projection, 0, meter=meter)
        found += _compare_problems(problems_of(connection, projection), found_problems)
        expected_rows = projection.visible_rows({table.name: table for table in pair.shadows})
        found_rows = projection.visible_rows({table.name: table for table in pair.hidden})
        for shadow, table in zip(pair.shadows, pair.hidden, strict=True):
            if table.name != projection_problems.name:
                visible = expected_rows.get(table.name), found_rows.get(table.name)
                found += compare(connection, shadow, table, visible)
    return found


def _are_empty(connection: Connection, tables: Sequence[Table]) -> bool:
    """Returns whether no table has a row; a table that does not exist has none."""
    existing = [table for table in tables if inspect(connection).has_table(table.name)]
    return not any(connection.scalar(select(exists().select_from(table))) for table in existing)


def compare(
    connection: Connection,
    expected: Table,
    found: Table,
    visible: tuple[ColumnElement[bool] | None, ColumnElement[bool] | None] = (None, None),
) -> Iterator[Difference]:
    """Yields the differences of two tables with the same columns, by key.

    Args:
        visible: The conditions of the rows to compare, for each of the tables.
    """
    expected_rows = _rows_of_first_only(connection, expected, found, visible)
    found_rows = _rows_of_first_only(connection, found, expected, visible[::-1])
    for key in sorted(expected_rows.keys() | found_rows.keys(), key=str):
        expected_row = expected_rows.get(key)
        found_row = found_rows.get(key)
        for number, column in enumerate(found.columns):
            pair = (expected_row and expected_row[number], found_row and found_row[number])
            if pair[0] != pair[1]:
                yield Difference(found.name, "/".join(map(str, key)), column.name, *pair)


def _rows_of_first_only(
    connection: Connection, first: Table, second: Table, visible: tuple[ColumnElement[bool] | None, ...]
) -> dict[tuple[Any, ...], Row[Any]]:
    places = [number for number, column in enumerate(first.columns) if column.primary_key]
    of_first, of_second = (
        select(*_comparable(table)).where(*([] if condition is None else [condition]))
        for table, condition in zip((first, second), visible, strict=True)
    )
    rows = connection.execute(of_first.except_(of_second))
    return {tuple(row[place] for place in places): row for row in rows}


def _comparable(table: Table) -> list[ColumnElement[Any]]:
    """Returns the columns in a form that can be compared; PostgreSQL compares JSON only as text."""
    return [cast(column, Text) if isinstance(column.type, JSON) else column for column in table.columns]


def _compare_problems(expected: list[Problem], found: list[Problem]) -> Iterator[Difference]:
    """Yields each problem, recorded or not: a log without errors has none."""
    expected_reasons = {(problem.projection, problem.sequence): problem.reason for problem in expected}
    found_reasons = {(problem.projection, problem.sequence): problem.reason for problem in found}
    for key in sorted(expected_reasons.keys() | found_reasons.keys()):
        expected_reason, found_reason = expected_reasons.get(key), found_reasons.get(key)
        yield Difference(
            projection_problems.name,
            f"{key[0]}/{key[1]}",
            "reason",
            None if expected_reason == found_reason else expected_reason,
            found_reason,
        )


def _compare_position(projection: Projection, end: int, found: Position | None) -> Iterator[Difference]:
    """Yields a difference if the position is not at the end of the log, or of another version."""
    expected = {"version": projection.version, "sequence": end}
    for column, value in expected.items():
        actual = None if found is None else getattr(found, column)
        if actual != value:
            yield Difference(projection_positions.name, projection.name, column, value, actual)
