"""`SettingsStore` for an event loop."""

from typing import Any, overload

from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import TypeForm

from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.settings import DefaultT, SettingsStore, SettingT


class AsyncSettingsStore:
    """The settings in one database. See `SettingsStore`."""

    def __init__(self, settings: SettingsStore, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    @overload
    async def get(self, key: str, default: DefaultT = ..., *, type: TypeForm[SettingT]) -> SettingT | DefaultT: ...
    @overload
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002
        """See `SettingsStore.get`."""
        return await self._calls.run(self._settings.get, key, default, type=type)

    async def set(self, key: str, value: Any, *, connection: AsyncConnection | None = None) -> None:
        """See `SettingsStore.set`."""
        await self._calls.run_on(connection, lambda own: self._settings.set(key, value, connection=own))

    async def delete(self, key: str, *, connection: AsyncConnection | None = None) -> bool:
        """See `SettingsStore.delete`."""
        return await self._calls.run_on(connection, lambda own: self._settings.delete(key, connection=own))

    async def all(self) -> dict[str, Any]:
        """See `SettingsStore.all`."""
        return await self._calls.run(self._settings.all)
