"""Keeps projections equal to what the log says: in each append, at start-up, and anew where that is needed."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.retries import OwnTransaction, in_own_transaction, with_own_commit
from peon.persistence.errors import ProjectionError, ProjectionsOutOfDate
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.projections import table_setup
from peon.persistence.projections.base import Projection
from peon.persistence.projections.positions import (
    Position,
    Problem,
    advance,
    position_of,
    problems_of,
    set_position,
)
from peon.persistence.projections.replay import Meter, Progress, Replay, applied
from peon.persistence.projections.shadow_tables import shadowed
from peon.persistence.projections.verification import Difference, compare, compare_position, compare_problems
from peon.persistence.schema import LAST_SEQUENCE, projection_problems

PAGES_A_COMMIT = 10
"""Pages of the log that are applied in one transaction: fewer cost more commits, more hold up appends for longer."""


class Projections:
    """The projections of one database.

    Args:
        codec: Decodes the events of the log.

    Raises:
        ValueError: Two have the same name or table, or a foreign key leads out of the tables of one.
    """

    def __init__(self, engine: Engine, projections: Sequence[Projection], codec: EventCodec[Any]) -> None:
        table_setup.check(projections)
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._projections = tuple(projections)
        self._replay = Replay(engine, codec)
        self._driver_errors = DriverErrors(engine)

    def __repr__(self) -> str:
        return f"<Projections {', '.join(p.name for p in self._projections)} of {database_name(self._engine)}>"

    def apply(self, connection: Connection, stored: list[StoredEvent[Any]]) -> None:
        """Applies events in the transaction that has just stored them.

        Raises:
            ProjectionError: At the first event that contradicts what is there. The transaction must be undone.
            ProjectionsOutOfDate: The tables are those of another version.
        """
        first, last = stored[0].sequence, stored[-1].sequence
        if not advance(connection, self._projections, first - 1, last):
            self._close_gaps(connection, first - 1, last)
        for projection in self._projections:
            refusals = applied(projection, connection, stored)
            if refusals:
                sequence = min(refusals)
                index = sequence - first
                raise ProjectionError(index, type(stored[index].event).__name__, refusals[sequence])

    def position(self) -> int:
        """Returns the sequence of the last event that all projections have applied, 0 before the first."""
        with self._driver_errors, self._reads.begin() as connection:
            found = [position_of(connection, projection) for projection in self._projections]
            return min((0 if position is None else position.sequence for position in found), default=0)

    def problems(self) -> list[Problem]:
        """Returns the stored events that could not be applied, by projection and sequence."""
        with self._driver_errors, self._reads.connect() as connection:
            return [problem for projection in self._projections for problem in problems_of(connection, projection)]

    def catch_up(self, progress: Progress | None = None) -> None:
        """Applies the events that are stored and were not applied; does nothing where there are none.

        It goes page by page, each in a transaction of its own together with the position, so that another call
        goes on where this one was interrupted. Events that cannot be applied become problems. What another
        version of the code has built is built anew, as by `rebuild`.

        Args:
            progress: Called after each page: how many events are done, and how many there are to do in all.

        Raises:
            StoreUnavailable: The database is locked, read-only, full, damaged.
        """
        with self._driver_errors:
            with self._reads.connect() as connection:
                end = connection.scalars(LAST_SEQUENCE).one()
                found = {projection: position_of(connection, projection) for projection in self._projections}
            changed, behind, total = [], [], 0
            for projection, position in found.items():
                if position is not None and position.version != projection.version:
                    changed.append(projection)
                    total += end
                elif position is None or position.sequence < end:
                    behind.append(projection)
                    total += end - (position.sequence if position is not None else 0)
            meter = Meter(progress, total)
            for projection in changed:
                self._rebuild(projection, meter)
            for projection in behind:
                self._catch_up(projection, meter)
            meter.finish()

    def rebuild(self, progress: Progress | None = None) -> None:
        """Builds all projections anew from the log.

        Readers see the old rows until all new ones are there, and appends wait only while those are put in place.
        An interrupted rebuild has changed nothing.

        Args:
            progress: As of `catch_up`.

        Raises:
            StoreUnavailable: The database is locked, read-only, full, damaged.
        """
        with self._driver_errors:
            with self._reads.connect() as connection:
                meter = Meter(progress, connection.scalars(LAST_SEQUENCE).one() * len(self._projections))
            for projection in self._projections:
                self._rebuild(projection, meter)

    def verify(self, progress: Progress | None = None) -> list[Difference]:
        """Computes all rows from the log once more, beside the tables, and compares; changes nothing.

        Args:
            progress: As of `catch_up`.

        Returns:
            What differs; an empty list where the tables are equal to what the log says. An event that could not be
            applied is a difference, too: a row of `projection_problems` where none is expected.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, self._reads.connect() as connection:
            meter = Meter(progress, connection.scalars(LAST_SEQUENCE).one() * len(self._projections))
            return [
                difference
                for projection in self._projections
                for difference in self._differences(connection, projection, meter)
            ]

    def _close_gaps(self, connection: Connection, before: int, last: int) -> None:
        """Applies what others have stored without this projection, an older version of the application perhaps."""
        for projection in self._projections:
            position = position_of(connection, projection)
            if position is None or position.version != projection.version or position.sequence > last:
                raise ProjectionsOutOfDate(
                    f"projection {projection.name} in {database_name(self._engine)} was changed by another version "
                    "of the application: open the database again, by the same version in all processes"
                )
            if position.sequence == last:  # advanced already
                continue
            self._replay.apply_pages(connection, projection, position.sequence, until=before)
            set_position(connection, projection, last)

    def _catch_up(self, projection: Projection, meter: Meter) -> None:
        while True:
            pages = in_own_transaction(self._engine, self._driver_errors, partial(self._apply_some, projection))
            if pages is None:
                break
            before, last = pages
            if last == before:
                return
            meter.add(last - before)
        self._rebuild(projection, meter)  # another version was here meanwhile

    def _apply_some(self, projection: Projection, connection: Connection) -> tuple[int, int] | None:
        """Returns where the projection was, and where it is now; `None` where it is one of another version."""
        with self._backend.large_cache(connection):
            self._backend.join_append(connection)
            position = position_of(connection, projection)
            if position is None:
                table_setup.prepare(connection, projection)
                set_position(connection, projection, 0)
                position = Position(projection.version, 0)
            if position.version != projection.version:
                return None
            last = self._replay.apply_pages(connection, projection, position.sequence, pages=PAGES_A_COMMIT)
            advance(connection, [projection], position.sequence, last)
        return position.sequence, last

    def _rebuild(self, projection: Projection, meter: Meter) -> None:
        reads = self._engine.execution_options(**{READ_ONLY: True})
        with_own_commit(reads, self._driver_errors, partial(self._build_anew, projection, meter))

    def _build_anew(self, projection: Projection, meter: Meter, own: OwnTransaction) -> None:
        connection = own.connection
        tables = [*projection.tables, projection_problems]
        with self._backend.large_cache(connection), shadowed(connection, tables) as pair:
            before, last = -1, 0
            while last != before:
                if self._backend.rebuilds_in_steps:
                    connection.commit()
                    connection.begin()  # the driver's statements do not begin it
                before = last
                last = self._replay.apply_pages(connection, projection, before, pages=PAGES_A_COMMIT, meter=meter)
            if self._backend.rebuilds_in_steps:
                connection.commit()
                connection.execution_options(**{READ_ONLY: False})
            self._backend.join_append(connection)
            last = self._replay.apply_pages(connection, projection, last, meter=meter)
            position = position_of(connection, projection)
            table_setup.replace(connection, projection, pair, version=position and position.version)
            set_position(connection, projection, last)
            own.commit()

    def _differences(self, connection: Connection, projection: Projection, meter: Meter) -> list[Difference]:
        if not connection.in_transaction():
            connection.begin()  # the driver's statements do not begin it
        position = position_of(connection, projection)
        found_problems = problems_of(connection, projection)
        differences = list(compare_position(projection, connection.scalars(LAST_SEQUENCE).one(), position))
        if position is None or position.version != projection.version:
            return differences  # its tables may be others, or not be there
        with shadowed(connection, [*projection.tables, projection_problems]) as pair:
            self._replay.apply_pages(connection, projection, 0, meter=meter)
            differences += compare_problems(problems_of(connection, projection), found_problems)
            for shadow, table in zip(pair.shadows, pair.hidden, strict=True):
                if table.name != projection_problems.name:
                    differences += compare(connection, shadow, table)
        return differences
