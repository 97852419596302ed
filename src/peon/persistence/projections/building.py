"""Changes stored events, and in the same transaction the rows of all projections that follow from them."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from sqlalchemy import Connection, Engine, Table

from peon.persistence.backends import backend_of
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.retries import OwnTransaction
from peon.persistence.log.pages import LogRow
from peon.persistence.log.removed import steps_of_compaction
from peon.persistence.projections import table_setup
from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import Problem, position_of, problems_of, require_not_newer, set_position
from peon.persistence.projections.replay import Meter, Replay
from peon.persistence.projections.shadow_tables import Shadows, shadowed
from peon.persistence.projections.steps import alone, remove_side_tables
from peon.persistence.schema import projection_problems


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
        self._replay = replay

    def build(
        self,
        projections: Sequence[Projection],
        own: OwnTransaction,
        *,
        meter: Meter,
        pages: int,
        change: LogChange,
    ) -> int:
        """Builds projections in shadow tables, changes the log, replaces the rows of the real tables, and commits.

        Args:
            pages: Pages of the log in a step.

        Returns:
            The sequence of the last event that was applied.
        """
        connection = own.connection
        tables = [*(table for projection in projections for table in projection.tables), projection_problems]
        with ExitStack() as until_commit, self._backend.large_cache(connection), shadowed(connection, tables) as pair:
            seen = steps_of_compaction(connection)
            reached = dict.fromkeys(projections, 0)
            before: dict[Projection, int] = {}
            while reached != before:
                if self._backend.rebuilds_in_steps:
                    connection.commit()
                    connection.begin()  # statements that the driver runs do not begin one
                before = reached.copy()
                self._apply(connection, reached, meter, change, pages)
                require_unchanged(connection, seen)
            for projection in projections:
                projection.finish(connection)  # before the lock; what comes meanwhile is little
            if self._backend.rebuilds_in_steps:
                connection.commit()
                connection.execution_options(**{READ_ONLY: False})
            for projection in projections:
                self._remove_side_tables(connection, projection, table_setup.part_of(projection, pair), until_commit)
            began = time.monotonic()
            self._backend.join_append(connection)
            own.lock_seconds = time.monotonic() - began
            self._apply(connection, reached, meter, change)
            require_unchanged(connection, seen)
            change.write(connection, [each for p in projections for each in _new_problems(connection, p, pair)])
            for projection, last in reached.items():
                projection.finish(connection)
                position = position_of(connection, projection)
                require_not_newer(self._engine, projection, position)
                part = table_setup.part_of(projection, pair)
                table_setup.empty(connection, projection, part, version=position and position.version)
                table_setup.fill(connection, projection, part)
                set_position(connection, projection, last)
            own.commit()
        return min(reached.values())

    def _remove_side_tables(
        self, connection: Connection, projection: Projection, pair: Shadows, until_commit: ExitStack
    ) -> None:
        """Removes the rows that a killed rebuild has left, which follow from the log too.

        It waits for a rebuild that runs, and keeps another from beginning with the old log until the commit.
        """
        side = self._backend.side_tables(connection, without_problems(pair.hidden))
        if side is not None:
            until_commit.enter_context(alone(connection, projection))
            remove_side_tables(connection, side)

    def _apply(
        self,
        connection: Connection,
        reached: dict[Projection, int],
        meter: Meter,
        change: LogChange,
        pages: int | None = None,
    ) -> None:
        for projection, after in reached.items():
            reached[projection] = self._replay.apply_pages(
                connection, projection, after, pages=pages, meter=meter, change=change.changed
            )


def require_unchanged(connection: Connection, seen: int) -> None:
    """Raises `LogChanged` if the log is not what it was when `steps_of_compaction` was `seen`."""
    if steps_of_compaction(connection) != seen:
        raise LogChanged


def without_problems(tables: Sequence[Table]) -> list[Table]:
    return [table for table in tables if table.name != projection_problems.name]


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
