"""Keeps projections equal to the log: updates them in each append, catches up at start-up, rebuilds, verifies."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.errors import ProjectionError, ProjectionsOutOfDate
from peon.persistence.log.codec import UNKNOWN_TYPE, EventCodec
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.projections import table_setup
from peon.persistence.projections.base import Projection
from peon.persistence.projections.log_records import ProjectionLog
from peon.persistence.projections.positions import (
    Position,
    Problem,
    advance,
    position_of,
    problems_of,
    require_not_newer,
    set_position,
    types_recorded_with,
)
from peon.persistence.projections.rebuilding import Rebuild
from peon.persistence.projections.replay import Meter, Progress, Replay, applied
from peon.persistence.projections.verification import Difference, differences
from peon.persistence.runtime.telemetry import telemetry_of
from peon.persistence.schema import LAST_SEQUENCE

PAGES_A_COMMIT = 10
"""Pages of the log in one transaction of a catch-up. Fewer need more commits; more make appends wait longer."""


class Projections:
    """The projections of one database.

    Args:
        codec: Decodes the events of the log.

    Raises:
        ValueError: Two projections have the same name or table, or a foreign key refers to a table of another.
    """

    def __init__(self, engine: Engine, projections: Sequence[Projection], codec: EventCodec[Any]) -> None:
        table_setup.check(projections)
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.projection_reads(engine)
        self._projections = tuple(projections)
        self._replay = Replay(engine, codec)
        self._known_types = codec.decoders.keys()
        self._driver_errors = DriverErrors(engine)
        self._telemetry = telemetry_of(engine)

    def __repr__(self) -> str:
        return f"<Projections {', '.join(p.name for p in self._projections)} of {database_name(self._engine)}>"

    def apply(self, connection: Connection, stored: list[StoredEvent[Any]]) -> None:
        """Applies events in the transaction that has just stored them.

        It leaves a projection alone that a newer version of the code has built: the newer version applies the events
        with its next append, or when it catches up.

        Raises:
            ProjectionError: At the first event that contradicts the tables. The transaction must be rolled back.
            ProjectionsOutOfDate: The tables are not those that this version has built, or hold events that were removed
                from the end of the log.
        """
        first, last = stored[0].sequence, stored[-1].sequence
        ours = self._projections
        moved = advance(connection, ours, first - 1, last)
        if moved < len(ours):
            ours = self._close_gaps(connection, first - 1, last, moved)
        for projection in ours:
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
        """Applies the stored events that were not applied yet; does nothing if there are none.

        It saves its position with every few pages, so that another call resumes where this one was interrupted.
        Events that cannot be applied become problems. A projection is rebuilt, as by `rebuild`, if an older version of
        the code has built it, if its position does not fit its tables or the log, as after a partial restore, or if it
        has passed over events of a type that was unknown and is known now.

        Args:
            progress: Called after each page with the number of events done and to do.

        Raises:
            ProjectionsTooNew: A newer version has built a projection. Nothing was written.
            StoreUnavailable: The database is locked, read-only, full or damaged.
        """
        with self._driver_errors:
            with self._reads.connect() as connection:
                self._backend.require_fitting_end(connection)
                end = connection.scalars(LAST_SEQUENCE).one()
                found = {projection: position_of(connection, projection) for projection in self._projections}
                for projection, position in found.items():
                    require_not_newer(self._engine, projection, position)
                unfit: dict[Projection, str] = {}
                behind: dict[Projection, int] = {}
                total = 0
                for projection, position in found.items():
                    reason = table_setup.reason_to_rebuild(connection, projection, position, end)
                    if reason := reason or self._reason_to_decode_again(connection, projection):
                        unfit[projection] = reason
                        total += end
                    elif position is None or position.sequence < end:
                        behind[projection] = 0 if position is None else position.sequence
                        total += end - behind[projection]
            meter = Meter(progress, total)
            for projection, reason in unfit.items():
                self._rebuild(projection, meter, reason)
            for projection, applied_before in behind.items():
                self._catch_up(projection, meter, applied_before, end)
            meter.finish()

    def rebuild(self, progress: Progress | None = None, *, replace_newer: bool = False) -> None:
        """Rebuilds all projections from the log.

        It needs nothing but the log: tables that are damaged, missing or of another shape are created again. Readers
        see the old rows of a projection until its new ones are complete. Appends wait only while the new rows
        replace the old ones. Each projection is replaced in one transaction; an interrupted rebuild leaves the
        remaining projections as they were.

        Args:
            progress: See `catch_up`.
            replace_newer: Rebuild even what a newer version of the code has built.

        Raises:
            ProjectionsTooNew: A newer version has built a projection, and `replace_newer` is off.
            StoreUnavailable: The database is locked, read-only, full or damaged.
        """
        with self._driver_errors:
            with self._reads.connect() as connection:
                meter = Meter(progress, connection.scalars(LAST_SEQUENCE).one() * len(self._projections))
                if not replace_newer:
                    self._require_none_newer(connection)
            for projection in self._projections:
                self._rebuild(projection, meter, "rebuild() was called", replace_newer=replace_newer)

    def verify(self, progress: Progress | None = None) -> list[Difference]:
        """Computes all rows from the log again, in temporary tables, and compares them; changes nothing.

        Args:
            progress: See `catch_up`.

        Returns:
            The differences; an empty list if the tables are equal to what the log says. An event that could not be
            applied is a difference too: a row of `projection_problems` where none is expected.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, self._reads.connect() as connection:
            meter = Meter(progress, connection.scalars(LAST_SEQUENCE).one() * len(self._projections))
            return [
                difference
                for projection in self._projections
                for difference in differences(connection, projection, self._replay, meter)
            ]

    def _reason_to_decode_again(self, connection: Connection, projection: Projection) -> str | None:
        """Returns why an application with another codec has left the projection without events, if so."""
        known_now = types_recorded_with(connection, projection, UNKNOWN_TYPE) & self._known_types
        return f"it has passed over events of type {min(known_now)}, which is known now" if known_now else None

    def _require_none_newer(self, connection: Connection) -> None:
        try:
            for projection in self._projections:
                require_not_newer(self._engine, projection, position_of(connection, projection))
        except Exception as error:
            if not self._is_fault_of_tables(error):  # a rebuild needs nothing but the log
                raise

    def _is_fault_of_tables(self, error: Exception) -> bool:
        cause = self._driver_errors.cause_of(error)
        return cause is not None and self._backend.is_fault_of_tables(cause)

    def _close_gaps(self, connection: Connection, before: int, last: int, moved: int) -> tuple[Projection, ...]:
        """Applies events that were stored without this projection, perhaps by an older version of the application.

        Args:
            moved: The number of projections that `advance` has moved to `last`.

        Returns:
            The projections that no newer version has built. Only to these, this version may apply events.
        """
        found = [(projection, position_of(connection, projection)) for projection in self._projections]
        at_last = [each for each, position in found if position == Position(each.version, last)]
        newer = [each for each, position in found if position is not None and position.version > each.version]
        for projection, position in found:
            # More than `advance` has moved: then some were there before, and hold events that were removed.
            if projection in newer or (projection in at_last and len(at_last) == moved):
                continue
            reason = table_setup.reason_to_rebuild(connection, projection, position, before)
            if position is None or reason:
                raise ProjectionsOutOfDate(
                    f"projection {projection.name} in {database_name(self._engine)} must be rebuilt, because "
                    f"{reason or 'it has no position in this log'}: open the database again"
                )
            self._replay.apply_pages(connection, projection, position.sequence, until=before)
            set_position(connection, projection, last)
        return tuple(each for each in self._projections if each not in newer)

    def _catch_up(self, projection: Projection, meter: Meter, position: int, end: int) -> None:
        """Applies the events above `position`; the log ended with `end` when that was looked at."""
        log = ProjectionLog(self._engine, projection)
        if end > position:  # otherwise it only gets its row and its empty tables
            log.is_behind(end - position)
        began = time.monotonic()
        with self._telemetry.operation("catch_up", projection_name=projection.name) as operation:
            last = self._catch_up_in_steps(projection, meter, position, end)
            operation.handled(last - position if last is not None else 0)
        if last is None:
            self._rebuild(projection, meter, "another version has built it meanwhile")
        elif last > position:
            log.caught_up(last - position, time.monotonic() - began)
            self._report_problems(projection, log, position)

    def _catch_up_in_steps(self, projection: Projection, meter: Meter, position: int, end: int) -> int | None:
        """Returns the last position; `None` if another version has built the projection."""
        while True:
            self._telemetry.projection_lag(projection.name, max(end - position, 0))
            pages = in_own_transaction(self._engine, self._driver_errors, partial(self._apply_some, projection))
            if pages is None:
                return None
            before, position = pages
            if position == before:
                self._telemetry.projection_lag(projection.name, 0)
                return position
            meter.add(position - before)

    def _report_problems(self, projection: Projection, log: ProjectionLog, after: int) -> None:
        with self._reads.connect() as connection:
            sequences = [each.sequence for each in problems_of(connection, projection) if each.sequence > after]
        if sequences:
            log.could_not_apply(sequences)

    def _apply_some(self, projection: Projection, connection: Connection) -> tuple[int, int] | None:
        """Returns the old and the new position of the projection; `None` if another version has built it."""
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

    def _rebuild(self, projection: Projection, meter: Meter, reason: str, *, replace_newer: bool = False) -> None:
        log = ProjectionLog(self._engine, projection)
        log.begins_rebuild(reason)
        began = time.monotonic()
        with self._telemetry.operation("rebuild", projection_name=projection.name) as operation:
            rebuild = Rebuild(self._engine, self._replay, projection, meter, log, replace_newer=replace_newer)
            last = rebuild.run()
            operation.handled(last)
        self._telemetry.projection_lag(projection.name, 0)
        log.rebuilt(last, time.monotonic() - began)
        self._report_problems(projection, log, 0)
