"""The face of the package: what an operator or a timer of the application calls."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from peon.orchestration.redaction import redacted
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.query import EventQuery
from peon.persistence.log.redacted import RecordedRedaction, recorded_redactions
from peon.persistence.log.removed import RemovedEvents, SequenceRange, lost_ranges, removed_ranges
from peon.persistence.maintenance.compaction import Compaction, Compactor
from peon.persistence.maintenance.redaction import Redaction, Redactor, Rule
from peon.persistence.maintenance.vacuum import Vacuum, vacuum
from peon.persistence.orchestration.deletions import clear_some
from peon.persistence.projections.base import Projection
from peon.persistence.projections.replay import Progress
from peon.persistence.runtime.event_loop import pause

SEVEN_DAYS = timedelta(days=7)


class Maintenance:
    """Changes what one database stores, while applications use it. All of it can be interrupted at any time."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], projections: Sequence[Projection]) -> None:
        self._engine = engine
        self._driver_errors = DriverErrors(engine)
        self._compactor = Compactor(engine, codec, self._driver_errors)
        self._redactor = Redactor(engine, codec, projections, self._driver_errors)

    def __repr__(self) -> str:
        return f"<Maintenance of {database_name(self._engine)}>"

    def compact(
        self, *, older_than: timedelta = SEVEN_DAYS, progress: Progress | None = None, dry_run: bool = False
    ) -> Compaction:
        """Replaces the chunks of each streamed message whose turn has ended by one event that holds their text.

        The merged event takes the place of the last chunk. All other events keep their sequences, and no sequence is
        used again: `removed_events` lists the gaps. Projections and the read model stay as they are, also after a
        rebuild. What a durable subscription or a projection has not read yet stays in pieces.

        It works in transactions of a few milliseconds, so appends hardly wait. An interrupted call leaves a complete
        log; another call continues. The space is reused by what is stored next; see `vacuum` to give it back.

        Args:
            older_than: Events that are younger stay as they are. A consumer that keeps its position itself must not be
                this far behind: it would be given the text of a message again of which it has read a part.
            progress: Called after each page with the number of events done and to do.
            dry_run: Change nothing, and return what would be done.

        Raises:
            StoreUnavailable: The database is locked, read-only, full, damaged or not reachable.
            ValueError: `older_than` is negative.
        """
        if older_than < timedelta(0):
            raise ValueError("older_than is a period of time, and not negative")
        return self._compactor.compact(older_than, progress, dry_run=dry_run)

    def clear_deleted(self) -> int:
        """Removes the rows of the read model that the deletion of a large project or thread has left.

        Readers do not see them any more, and each later append removes some; this removes all now. It works in
        transactions of a few milliseconds, so appends hardly wait. An interrupted call leaves the rest to later ones.

        Returns:
            The number of rows that it has removed.

        Raises:
            StoreUnavailable: The database is locked, read-only, full, damaged or not reachable.
        """
        removed = 0
        while True:
            began = time.monotonic()
            step = in_own_transaction(self._engine, self._driver_errors, self._clear_some)
            if not step:
                return removed
            removed += step
            pause(time.monotonic() - began, self._engine.dialect)  # half of the time is for others

    def _clear_some(self, connection: Connection) -> int:
        backend_of(self._engine).join_append(connection)
        return clear_some(connection)

    def removed_events(self) -> list[RemovedEvents]:
        """Returns the gaps that compactions have left in the log, in order. No two of them are adjacent.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, backend_of(self._engine).consistent_reads(self._engine).begin() as connection:
            return removed_ranges(connection)

    def lost_events(self) -> list[SequenceRange]:
        """Returns the sequences below the end of the log whose events are missing without a record, as ranges.

        They were removed by hand, or lost before a salvage. It reads the index of the whole log.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, backend_of(self._engine).consistent_reads(self._engine).begin() as connection:
            return lost_ranges(connection)

    def redact(
        self,
        query: EventQuery,
        rule: Rule = redacted,
        *,
        by: str = "",
        vacuum: bool = True,
        progress: Progress | None = None,
        dry_run: bool = False,
    ) -> Redaction:
        """Replaces the content of the events that match a query, and of the rows that follow from them.

        The events keep their place, their type, their identifiers and their times, so nothing contradicts them
        afterwards. The rows of all projections change in the same transaction. They are built first, from the whole
        log, so that appends wait only while the events and the rows are replaced. The act is recorded, without the
        content; see `redactions`. An interrupted call has done nothing, or everything but the last step, which removes
        the content from the files; the next call with the query does it.

        Events that match and cannot be decoded stay as they are; the result lists them. Backups, replicas, exported
        files and what consumers of subscriptions have stored elsewhere are not touched.

        Args:
            query: Which events. See `of_project` for all of a project.
            rule: Takes an event, and returns the one to store instead. It must return an event of the same class with
                the same identifiers, and the same one for an event that it has replaced before. By default it is
                `peon.orchestration.redacted`, which knows the events of the domain only.
            by: Who does it, for the record.
            vacuum: On SQLite, write the file again afterwards: it holds parts of what was deleted earlier, for example
                of streamed chunks. See `vacuum`. PostgreSQL needs a vacuum of its own; the result says which.
            progress: Called after each page with the number of events done and to do; each projection reads all.
            dry_run: Change nothing, and return what would be done.

        Raises:
            TypeError: The rule does not know the event, or returns another class.
            ValueError: No event can match the query; the rule returns an event that cannot be stored, or that
                contradicts others. Nothing was changed.
            PersistenceError: The database has a projection that this application does not have, or has in another
                version.
            StoreUnavailable: The database is locked, read-only, full, damaged or not reachable. If its message does not
                say that the outcome is unknown, nothing was changed.
        """
        return self._redactor.redact(query, rule, by, progress, vacuum=vacuum, dry_run=dry_run)

    def of_project(self, project_id: UUID | str) -> EventQuery:
        """Returns the query of all events of a project, and of all threads that it has, or had: most name only those.

        Raises:
            StoreUnavailable: The database cannot be read.
            ValueError: `project_id` is not a UUID.
        """
        return self._redactor.of_project(project_id)

    def redactions(self) -> list[RecordedRedaction]:
        """Returns what redactions have done, in order.

        Raises:
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, backend_of(self._engine).consistent_reads(self._engine).begin() as connection:
            return recorded_redactions(connection)

    def vacuum(self, *, full: bool = False, progress: Progress | None = None, dry_run: bool = False) -> Vacuum:
        """Gives the space of removed rows back to the file system.

        Args:
            full: Write the whole database again, which leaves the smallest one. Others wait until it is done: on
                SQLite for the write lock, on PostgreSQL for each table in turn. Otherwise SQLite moves pages in short
                steps, if the file was created by this version or vacuumed with `full` since; PostgreSQL makes the space
                available to new rows, and returns what is free at the end of each table.
            progress: Called with the number of pages or tables done and to do.
            dry_run: Change nothing, and return what it would take.

        Raises:
            StoreUnavailable: The database is locked, read-only, damaged or not reachable, or the disk has not enough
                room for `full`.
        """
        return vacuum(self._engine, self._driver_errors, progress, full=full, dry_run=dry_run)
