"""Rebuilds one projection: computes its rows again from the log, and puts them into the place of the old ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Connection, Engine, Table, literal_column, select, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropTable

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.backends.side_tables import NewTables, SideTables, TablesChanged
from peon.persistence.log.removed import steps_of_compaction
from peon.persistence.projections import table_setup
from peon.persistence.projections.base import Projection
from peon.persistence.projections.building import LogChanged, require_unchanged, without_problems
from peon.persistence.projections.log_records import ProjectionLog
from peon.persistence.projections.positions import position_of, require_not_newer, set_position
from peon.persistence.projections.replay import Meter, Replay
from peon.persistence.projections.shadow_tables import Shadows, declared_in_log, shadowed
from peon.persistence.projections.steps import POLL_SECONDS, alone, in_steps, remove_side_tables
from peon.persistence.projections.table_shape import are_as_declared
from peon.persistence.runtime.event_loop import pause
from peon.persistence.schema import LAST_SEQUENCE, projection_problems

PAGES_A_COMMIT = 10
"""Pages of the log in one transaction of the shadow tables, for which nothing waits."""

PAGES_A_STEP = 1
"""Pages of the log in one transaction that appends wait for."""


FEW_ROWS = 1_000
"""So many rows are copied into the real tables of PostgreSQL, which takes less time than to create new ones."""

PATIENCE_SECONDS = 60.0
"""After this long, a rebuild on PostgreSQL no longer waits for a moment without a reader. Then appends wait for it."""

MAXIMUM_POLL_SECONDS = 2.0
"""Between two attempts to find such a moment."""


class _UnusableTables(Exception):  # noqa: N818 - handled where it is met
    """The tables of a projection cannot be emptied or filled; the cause says why."""


class Rebuild:
    """One rebuild of one projection.

    Args:
        replace_newer: Replace even what a newer version of the code has built.
    """

    def __init__(
        self,
        engine: Engine,
        replay: Replay,
        projection: Projection,
        meter: Meter,
        log: ProjectionLog,
        *,
        replace_newer: bool,
    ) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._driver_errors = DriverErrors(engine)
        self._replay = replay
        self._projection = projection
        self._meter = meter
        self._log = log
        self._replace_newer = replace_newer

    def run(self) -> int:
        """Builds the projection with the tables that it has, or with new ones.

        Returns:
            The sequence of the last event that was applied.

        Raises:
            ProjectionsTooNew: A newer version has built it, and `replace_newer` is off.
        """
        if self._can_be_emptied():
            try:
                return self._while_nothing_changes(partial(self._build_and_replace, unreadable=None))
            except _UnusableTables as error:
                self._log.has_unusable_tables(error.__cause__ or error)
        self._log.creates_tables_again()
        with self._reads.connect() as connection:
            unreadable = table_setup.unreadable_tables(connection, self._projection)
        return self._while_nothing_changes(partial(self._build_and_replace, unreadable=unreadable))

    def _while_nothing_changes(self, work: Callable[[OwnTransaction], int]) -> int:
        """Performs the work again if a compaction has changed the log, or a migration the tables.

        The work reads the log in steps. It might have read some chunks of a message, and then read the event into which
        a compaction has merged them.
        """
        reads = self._engine.execution_options(**{READ_ONLY: True})
        while True:
            try:
                return with_own_commit(reads, self._driver_errors, work)
            except LogChanged:
                self._log.begins_rebuild("a compaction or a redaction has changed the log meanwhile")
            except TablesChanged:
                self._log.begins_rebuild("its tables have changed meanwhile")

    def _can_be_emptied(self) -> bool:
        """Returns whether the tables have the declared shape, as far as that can be seen without reading their rows."""
        with self._reads.connect() as connection:
            try:
                kept = self._kept_tables(connection)
            except Exception as error:
                if not self._is_fault_of_tables(error):
                    raise
                return False
            return not kept or are_as_declared(connection, declared_in_log(connection, kept))

    def _kept_tables(self, connection: Connection) -> list[Table]:
        position = position_of(connection, self._projection)
        return table_setup.tables_to_empty(self._projection, position and position.version)

    def _build_and_replace(self, own: OwnTransaction, *, unreadable: set[str] | None) -> int:
        """Builds the projection in shadow tables, and replaces the rows of the real ones.

        Args:
            unreadable: Create the real tables again, of which these cannot be read. `None` to keep the tables.
        """
        connection = own.connection
        tables = [*self._projection.tables, projection_problems]
        with self._backend.large_cache(connection), shadowed(connection, tables) as pair:
            seen = steps_of_compaction(connection)
            before, last = -1, 0
            while last != before:
                if self._backend.rebuilds_in_steps:
                    connection.commit()
                    connection.begin()  # statements that the driver runs do not begin one
                before = last
                last = self._replay.apply_pages(
                    connection, self._projection, before, pages=PAGES_A_COMMIT, meter=self._meter
                )
                require_unchanged(connection, seen)
            self._projection.finish(connection)
            side = None if unreadable is not None else self._side_tables(connection, pair)
            new = None if unreadable is not None else self._new_tables(connection, pair)
            if self._backend.rebuilds_in_steps:
                connection.commit()
                connection.execution_options(**{READ_ONLY: False})
            if side is not None:
                return self._exchange(own, pair, side, seen, last)
            if new is not None:
                return self._replace(own, pair, new, seen, last)
            return self._refill(own, pair, seen, last, unreadable)

    def _refill(self, own: OwnTransaction, pair: Shadows, seen: int, last: int, unreadable: set[str] | None) -> int:
        """Empties and fills the real tables in one transaction, for which appends wait."""
        connection = own.connection
        self._lock(own)
        last = self._replay.apply_pages(connection, self._projection, last, meter=self._meter)
        self._projection.finish(connection)
        require_unchanged(connection, seen)
        with self._faults_of_tables(handled=unreadable is None):
            if unreadable is not None:
                table_setup.recreate(connection, self._projection, pair, unreadable)
            position = position_of(connection, self._projection)
            if not self._replace_newer:
                require_not_newer(self._engine, self._projection, position)
            if unreadable is None:
                table_setup.empty(connection, self._projection, pair, version=position and position.version)
            table_setup.fill(connection, self._projection, pair)
            set_position(connection, self._projection, last)
        own.commit()
        return last

    def _side_tables(self, connection: Connection, pair: Shadows) -> SideTables | None:
        """Returns what creates the side tables; `None` if the rows of the real tables cannot be exchanged."""
        side = self._backend.side_tables(connection, without_problems(pair.hidden))
        return side if side is not None and self._keep_their_shape(connection, side) else None

    def _new_tables(self, connection: Connection, pair: Shadows) -> NewTables | None:
        """Returns what creates the new tables; `None` if the real ones cannot be replaced by others, or need not be."""
        new = self._backend.new_tables(connection, without_problems(pair.hidden))
        if new is None:
            return None
        new.wait_for_others(connection)
        with self._faults_of_tables(handled=True):
            if not _has_more_rows(connection, [*pair.shadows, *pair.hidden], FEW_ROWS):
                return None
        return new if self._keep_their_shape(connection, new) else None

    def _keep_their_shape(self, connection: Connection, others: SideTables | NewTables) -> bool:
        """Returns whether a new version has left the tables as they are; otherwise they are created again."""
        kept = {table.name for table in self._kept_tables(connection)}
        created = [table for table in self._projection.tables if table.name not in kept]
        return not created or others.are_created_as(connection, created)

    def _exchange(self, own: OwnTransaction, pair: Shadows, side: SideTables, seen: int, last: int) -> int:
        """Copies the rows into side tables in many short transactions, and exchanges them with the old ones.

        A rebuild that is killed leaves side tables, which the next one removes.
        """
        connection, sources = own.connection, without_problems(pair.shadows)
        with alone(connection, self._projection):
            require_unchanged(connection, seen)  # a redaction may have had the lock: these rows must not be copied then
            connection.commit()
            self._remove(connection, side)
            try:
                with side.writing(connection):
                    in_steps(connection, _created_and_filled(connection, side, sources), side)
                _drop_shadows(connection, sources)  # from here on, their names mean the real tables
                with side.exchanging(connection):
                    end = self._follow(own, pair, side, seen, last)
            except Exception:
                self._remove(connection, side)
                raise
            try:
                self._remove(connection, side)
            except DBAPIError as error:  # the disk is full, or another program holds the write lock
                connection.rollback()
                self._log.keeps_old_rows(self._driver_errors.cause_of(error) or error)
        if end > last:
            self._meter.add(end - last)
        return end

    def _follow(self, own: OwnTransaction, pair: Shadows, side: SideTables, seen: int, last: int) -> int:
        """Applies what was appended meanwhile, and leaves the rows exchanged when there is no more.

        The projection's code meets the new rows under the names of the real tables. Until they are complete, no other
        connection sees that, because each transaction exchanges them back before it ends.
        """
        connection = own.connection
        while True:
            self._lock(own)
            require_unchanged(connection, seen)
            side.exchange(connection)
            last = self._replay.apply_pages(connection, self._projection, last, pages=PAGES_A_STEP)
            if last >= connection.scalars(LAST_SEQUENCE).one():
                break
            side.exchange(connection)
            connection.commit()
        self._complete(own, pair, last)
        return last

    def _replace(self, own: OwnTransaction, pair: Shadows, new: NewTables, seen: int, last: int) -> int:
        """Replaces the real tables by new ones, in one transaction: a rebuild that is killed leaves nothing."""
        connection, shadows = own.connection, without_problems(pair.shadows)
        before = last
        with self._faults_of_tables(handled=True):
            new.create(connection)
            new.fill(connection, shadows)
        for shadow in reversed(shadows):
            connection.execute(DropTable(shadow))  # from here on, their names mean the real tables
        last = self._apply_beside(connection, new, last)
        until = time.monotonic() + PATIENCE_SECONDS
        wait = POLL_SECONDS
        while not new.try_to_replace(connection):
            if time.monotonic() > until:
                self._copy_from_new_tables(own, pair, new)
                break
            pause(wait, connection.dialect)
            wait = min(2 * wait, MAXIMUM_POLL_SECONDS)
            last = self._apply_beside(connection, new, last)
        last = self._replay.apply_pages(connection, self._projection, last)
        require_unchanged(connection, seen)
        self._complete(own, pair, last)
        if last > before:
            self._meter.add(last - before)
        return last

    def _apply_beside(self, connection: Connection, new: NewTables, last: int) -> int:
        """Applies what was appended meanwhile to the new tables, while the real ones are not locked."""
        with connection.begin_nested() as savepoint:
            try:
                with new.standing_in(connection):
                    return self._replay.apply_pages(connection, self._projection, last)
            except Exception as error:
                cause = self._driver_errors.cause_of(error)
                if cause is None or not self._backend.is_fault_of_tables(cause):
                    raise
                savepoint.rollback()
        return last  # the projection's code needs tables: the events are applied when the new ones are in place

    def _copy_from_new_tables(self, own: OwnTransaction, pair: Shadows, new: NewTables) -> None:
        """Copies the rows into the real tables, because readers never left them alone."""
        connection = own.connection
        self._log.copies_rows()
        self._lock(own)
        with self._faults_of_tables(handled=True):
            table_setup.empty(connection, self._projection, pair, version=self._projection.version)
            table_setup.fill(connection, self._projection, Shadows(new.tables, without_problems(pair.hidden)))
        new.drop(connection)

    def _complete(self, own: OwnTransaction, pair: Shadows, last: int) -> None:
        """Commits the new rows, which are in the real tables, with the problems and the position."""
        connection = own.connection
        with self._faults_of_tables(handled=True):
            if not self._replace_newer:
                require_not_newer(self._engine, self._projection, position_of(connection, self._projection))
            table_setup.replace_problems(connection, self._projection, pair)
            set_position(connection, self._projection, last)
        own.commit()

    def _lock(self, own: OwnTransaction) -> None:
        began = time.monotonic()
        self._backend.join_append(own.connection)
        own.lock_seconds = max(own.lock_seconds, time.monotonic() - began)

    def _remove(self, connection: Connection, side: SideTables) -> None:
        """Removes the side tables, whatever is in them."""
        try:
            remove_side_tables(connection, side)
        except DBAPIError as error:
            if not self._is_fault_of_tables(error):
                raise
            # They were the tables of the projection until now.
            self._log.has_unusable_tables(self._driver_errors.cause_of(error) or error)
            self._backend.begin_writing(connection)  # the transaction that has met a damaged page cannot write
            side.forget(connection)
            connection.commit()

    @contextmanager
    def _faults_of_tables(self, *, handled: bool) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not handled or not self._is_fault_of_tables(error):
                raise
            raise _UnusableTables from self._driver_errors.cause_of(error)

    def _is_fault_of_tables(self, error: Exception) -> bool:
        cause = self._driver_errors.cause_of(error)
        return cause is not None and self._backend.is_fault_of_tables(cause)


def _created_and_filled(connection: Connection, side: SideTables, sources: Sequence[Table]) -> Iterator[None]:
    side.create(connection)
    yield
    yield from side.copy(connection, sources)


def _has_more_rows(connection: Connection, tables: Sequence[Table], number: int) -> bool:
    """Returns whether the tables have more than a number of rows in all; reads no more than necessary."""
    rows = union_all(*(select(literal_column("1")).select_from(table) for table in tables)).subquery()
    return connection.scalar(select(literal_column("1")).select_from(rows).limit(1).offset(number)) is not None


def _drop_shadows(connection: Connection, shadows: Sequence[Table]) -> None:
    connection.execution_options(**{READ_ONLY: True})  # temporary tables do not need the write lock
    for shadow in reversed(shadows):
        connection.execute(DropTable(shadow))
    connection.commit()
    connection.execution_options(**{READ_ONLY: False})
