"""`Maintenance` for an event loop."""

from datetime import timedelta

from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.maintenance import Compaction, Maintenance, RemovedEvents, SequenceRange, Vacuum
from peon.persistence.maintenance.maintenance import SEVEN_DAYS
from peon.persistence.projections import Progress


class AsyncMaintenance:
    """Keeps one database small. See `Maintenance`."""

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

    async def vacuum(self, *, full: bool = False, progress: Progress | None = None, dry_run: bool = False) -> Vacuum:
        """See `Maintenance.vacuum`."""
        return await self._calls.run(self._maintenance.vacuum, full=full, progress=progress, dry_run=dry_run)
