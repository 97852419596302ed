"""Builds projections in shadow tables and replaces the rows of the real ones: in a rebuild, or when the log changes."""

import time
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.retries import OwnTransaction
from peon.persistence.errors import ProjectionsTooNew
from peon.persistence.log.pages import LogRow
from peon.persistence.log.removed import steps_of_compaction
from peon.persistence.projections import table_setup
from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import Position, Problem, position_of, problems_of, set_position
from peon.persistence.projections.replay import Meter, Replay
from peon.persistence.projections.shadow_tables import Shadows, shadowed
from peon.persistence.schema import projection_problems


class UnusableTables(Exception):  # noqa: N818 - handled where it is met
    """The tables of a projection cannot be emptied or filled; the cause says why."""


class LogChanged(Exception):  # noqa: N818 - handled where it is met
    """A compaction or a redaction has changed the log while a build was reading it."""


class LogChange(Protocol):
    """A change of stored events. The rows that follow from them change in the same transaction."""

    def changed(self, page: list[LogRow]) -> list[LogRow]:
        """Returns the rows of a page as they will be stored."""

    def write(self, connection: Connection, problems: Sequence[Problem]) -> None:
        """Changes the log.

        Args:
            problems: Events that could be applied until now, and cannot be applied after the change.

        Raises:
            LogChanged: Something else has changed the log since.
        """


class Builder:
    """Builds projections of `engine`."""

    def __init__(self, engine: Engine, replay: Replay) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._driver_errors = DriverErrors(engine)
        self._replay = replay

    def build(
        self,
        projections: Sequence[Projection],
        own: OwnTransaction,
        *,
        meter: Meter,
        pages: int,
        replace_newer: bool = False,
        unreadable: set[str] | None = None,
        change: LogChange | None = None,
    ) -> int:
        """Builds projections in shadow tables, replaces the rows of the real ones, and commits.

        Args:
            pages: Pages of the log in a step.
            replace_newer: See `Projections.rebuild`.
            unreadable: Create the real tables again, of which these cannot be read. `None` to keep the tables.
            change: What to do to the log in the transaction that replaces the rows.

        Returns:
            The sequence of the last event that was applied.
        """
        connection = own.connection
        tables = [*(table for projection in projections for table in projection.tables), projection_problems]
        with self._backend.large_cache(connection), shadowed(connection, tables) as pair:
            seen = steps_of_compaction(connection)
            reached = dict.fromkeys(projections, 0)
            before: dict[Projection, int] = {}
            while reached != before:
                if self._backend.rebuilds_in_steps:
                    connection.commit()
                    connection.begin()  # statements that the driver runs do not begin one
                before = reached.copy()
                self._apply(connection, reached, meter, change, pages)
                _require_not_changed(connection, seen)
            if self._backend.rebuilds_in_steps:
                connection.commit()
                connection.execution_options(**{READ_ONLY: False})
            began = time.monotonic()
            self._backend.join_append(connection)
            own.lock_seconds = time.monotonic() - began
            self._apply(connection, reached, meter, change)
            _require_not_changed(connection, seen)
            if change is not None:
                change.write(connection, [each for p in projections for each in _new_problems(connection, p, pair)])
            for projection, last in reached.items():
                part = table_setup.part_of(projection, pair)
                self._replace(connection, projection, part, last, unreadable, replace_newer=replace_newer)
            own.commit()
        return min(reached.values())

    def _apply(
        self,
        connection: Connection,
        reached: dict[Projection, int],
        meter: Meter,
        change: LogChange | None,
        pages: int | None = None,
    ) -> None:
        changed = None if change is None else change.changed
        for projection, after in reached.items():
            reached[projection] = self._replay.apply_pages(
                connection, projection, after, pages=pages, meter=meter, change=changed
            )

    def _replace(
        self,
        connection: Connection,
        projection: Projection,
        pair: Shadows,
        last: int,
        unreadable: set[str] | None,
        *,
        replace_newer: bool,
    ) -> None:
        try:
            if unreadable is not None:
                table_setup.recreate(connection, projection, pair, unreadable)
            position = position_of(connection, projection)
            if not replace_newer:
                require_not_newer(self._engine, projection, position)
            if unreadable is None:
                table_setup.empty(connection, projection, pair, version=position and position.version)
            table_setup.fill(connection, projection, pair)
            set_position(connection, projection, last)
        except Exception as error:
            cause = self._driver_errors.cause_of(error)
            if unreadable is not None or cause is None or not self._backend.is_fault_of_tables(cause):
                raise
            raise UnusableTables from cause


def require_not_newer(engine: Engine, projection: Projection, position: Position | None) -> None:
    """Raises `ProjectionsTooNew` if a newer version of the code has built the projection."""
    if position is not None and position.version > projection.version:
        raise ProjectionsTooNew(
            projection.name,
            database=database_name(engine),
            found=position.version,
            expected=projection.version,
        )


def _require_not_changed(connection: Connection, seen: int) -> None:
    if steps_of_compaction(connection) != seen:
        raise LogChanged


def _new_problems(connection: Connection, projection: Projection, pair: Shadows) -> list[Problem]:
    """Returns what cannot be applied to the shadow tables, and was applied to the real ones."""
    (recorded,) = [table for table in pair.hidden if table.name == projection_problems.name]
    position = position_of(connection, projection)
    known = {each.sequence for each in problems_of(connection, projection, recorded)}
    return [
        each
        for each in problems_of(connection, projection)
        if position is not None and each.sequence <= position.sequence and each.sequence not in known
    ]
