"""Projections, read model and settings, to be awaited: what each does is documented with the class it wraps."""

from typing import Any, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncConnection

from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.orchestration.read_model import ReadModel
from peon.persistence.projections import Projections
from peon.persistence.settings import SettingsStore

SettingT = TypeVar("SettingT")


class AsyncProjections:
    """`Projections`."""

    def __init__(self, projections: Projections, calls: Calls) -> None:
        self.position = calls.awaited(projections.position)
        self.problems = calls.awaited(projections.problems)
        self.catch_up = calls.awaited(projections.catch_up)
        self.rebuild = calls.awaited(projections.rebuild)
        self.verify = calls.awaited(projections.verify)


class AsyncReadModel:
    """`ReadModel`."""

    def __init__(self, read_model: ReadModel, calls: Calls) -> None:
        self.projects = calls.awaited(read_model.projects)
        self.project = calls.awaited(read_model.project)
        self.threads = calls.awaited(read_model.threads)
        self.thread = calls.awaited(read_model.thread)
        self.selected_thread = calls.awaited(read_model.selected_thread)
        self.turns = calls.awaited(read_model.turns)
        self.turn = calls.awaited(read_model.turn)
        self.messages = calls.awaited(read_model.messages)
        self.thread_messages = calls.awaited(read_model.thread_messages)
        self.message = calls.awaited(read_model.message)
        self.checkpoints = calls.awaited(read_model.checkpoints)
        self.checkpoint = calls.awaited(read_model.checkpoint)
        self.pending_approvals = calls.awaited(read_model.pending_approvals)
        self.approval = calls.awaited(read_model.approval)
        self.commits = calls.awaited(read_model.commits)
        self.branches = calls.awaited(read_model.branches)
        self.snapshot = calls.awaited(read_model.snapshot)


class AsyncSettingsStore:
    """`SettingsStore`."""

    def __init__(self, settings: SettingsStore, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls
        self.all = calls.awaited(settings.all)

    @overload
    async def get(self, key: str) -> Any: ...
    @overload
    async def get(self, key: str, type: type[SettingT]) -> SettingT | None: ...
    @overload
    async def get(self, key: str, type: type[SettingT], default: SettingT) -> SettingT: ...
    @overload
    async def get(self, key: str, type: Any = None, default: Any = None) -> Any: ...
    async def get(self, key: str, type: Any = None, default: Any = None) -> Any:  # noqa: A002
        """See `SettingsStore.get`."""
        return await self._calls.run(self._settings.get, key, type, default)

    async def set(self, key: str, value: Any, *, connection: AsyncConnection | None = None) -> None:
        """See `SettingsStore.set`."""
        await self._calls.run_on(connection, lambda own: self._settings.set(key, value, connection=own))

    async def delete(self, key: str, *, connection: AsyncConnection | None = None) -> bool:
        """See `SettingsStore.delete`."""
        return await self._calls.run_on(connection, lambda own: self._settings.delete(key, connection=own))
