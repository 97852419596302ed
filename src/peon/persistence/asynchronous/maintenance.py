"""`Maintenance` for an event loop."""

from datetime import timedelta
from uuid import UUID

from peon.orchestration.redaction import redacted
from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.log.query import EventQuery
from peon.persistence.maintenance import (
    Compaction,
    Maintenance,
    RecordedRedaction,
    Redaction,
    RemovedEvents,
    SequenceRange,
    Vacuum,
)
from peon.persistence.maintenance.maintenance import SEVEN_DAYS
from peon.persistence.maintenance.redaction import Rule
from peon.persistence.projections import Progress


class AsyncMaintenance:
    """Changes what one database stores. See `Maintenance`."""

    def __init__(self, maintenance: Maintenance, calls: Calls) -> None:
        self._maintenance = maintenance
        self._calls = calls

    def __repr__(self) -> str:
        return f"<Async{repr(self._maintenance)[1:]}"

    async def compact(
        self, *, older_than: timedelta = SEVEN_DAYS, progress: Progress | None = None, dry_run: bool = False
    ) -> Compaction:
        """See `Maintenance.compact`."""
        return await self._calls.run(
            self._maintenance.compact, older_than=older_than, progress=progress, dry_run=dry_run
        )

    async def clear_deleted(self) -> int:
        """See `Maintenance.clear_deleted`."""
        return await self._calls.run(self._maintenance.clear_deleted)

    async def removed_events(self) -> list[RemovedEvents]:
        """See `Maintenance.removed_events`."""
        return await self._calls.run(self._maintenance.removed_events)

    async def lost_events(self) -> list[SequenceRange]:
        """See `Maintenance.lost_events`."""
        return await self._calls.run(self._maintenance.lost_events)

    async def redact(
        self,
        query: EventQuery,
        rule: Rule = redacted,
        *,
        by: str = "",
        vacuum: bool = True,
        progress: Progress | None = None,
        dry_run: bool = False,
    ) -> Redaction:
        """See `Maintenance.redact`."""
        return await self._calls.run(
            self._maintenance.redact, query, rule, by=by, vacuum=vacuum, progress=progress, dry_run=dry_run
        )

    async def of_project(self, project_id: UUID | str) -> EventQuery:
        """See `Maintenance.of_project`."""
        return await self._calls.run(self._maintenance.of_project, project_id)

    async def redactions(self) -> list[RecordedRedaction]:
        """See `Maintenance.redactions`."""
        return await self._calls.run(self._maintenance.redactions)

    async def vacuum(self, *, full: bool = False, progress: Progress | None = None, dry_run: bool = False) -> Vacuum:
        """See `Maintenance.vacuum`."""
        return await self._calls.run(self._maintenance.vacuum, full=full, progress=progress, dry_run=dry_run)
