"""`Projections` for an event loop."""

from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.projections import Difference, Problem, Progress, Projections


class AsyncProjections:
    """The projections of one database. See `Projections`."""

    def __init__(self, projections: Projections, calls: Calls) -> None:
        self._projections = projections
        self._calls = calls

    async def position(self) -> int:
        """See `Projections.position`."""
        return await self._calls.run(self._projections.position)

    async def problems(self) -> list[Problem]:
        """See `Projections.problems`."""
        return await self._calls.run(self._projections.problems)

    async def catch_up(self, progress: Progress | None = None) -> None:
        """See `Projections.catch_up`."""
        await self._calls.run(self._projections.catch_up, progress)

    async def rebuild(self, progress: Progress | None = None, *, replace_newer: bool = False) -> None:
        """See `Projections.rebuild`."""
        await self._calls.run(self._projections.rebuild, progress, replace_newer=replace_newer)

    async def verify(self, progress: Progress | None = None) -> list[Difference]:
        """See `Projections.verify`."""
        return await self._calls.run(self._projections.verify, progress)
