"""The façade for an event loop."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy import URL, Engine, event
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent
from peon.persistence.asynchronous.event_store import AsyncEventStore
from peon.persistence.asynchronous.facades import AsyncProjections, AsyncReadModel, AsyncSettingsStore
from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import create_async_engine, create_engine, is_memory, sqlite_connection
from peon.persistence.database import EngineArguments, bring_to_head, configured, projections_in
from peon.persistence.errors import StoreUnavailable
from peon.persistence.orchestration.read_model import ReadModel
from peon.persistence.projections import Progress, Projection
from peon.persistence.settings import SettingsStore


class AsyncDatabase:
    """As `Database`, for any number of tasks of one event loop.

    The same code runs, on `aiosqlite` and psycopg's asynchronous connections. What a task was cancelled in the
    middle of still comes to its end, as a whole, and `close` waits for it.

    Attributes:
        engine: For transactions of the application's own.
        events: As of `Database`, to be awaited.
        projections: As of `Database`, to be awaited.
        read_model: As of `Database`, to be awaited.
        settings: As of `Database`, to be awaited.
    """

    def __init__(self, engine: AsyncEngine, *, projections: bool | Sequence[Projection] = True) -> None:
        self.engine = engine
        self._calls = Calls()
        synchronous = projections_in(engine.sync_engine, projections)
        on_append = None if projections is False else synchronous.apply
        self.events: AsyncEventStore[OrchestrationEvent] = AsyncEventStore(
            engine, on_append=on_append, calls=self._calls
        )
        self.projections = AsyncProjections(synchronous, self._calls)
        self.read_model = AsyncReadModel(ReadModel(engine.sync_engine), self._calls)
        self.settings = AsyncSettingsStore(SettingsStore(engine.sync_engine), self._calls)

    def __repr__(self) -> str:
        return f"<AsyncDatabase {database_name(self.engine.sync_engine)}>"

    @classmethod
    async def open(
        cls,
        config: AppConfig | None = None,
        *,
        url: str | URL | None = None,
        migrate: bool = True,
        projections: bool | Sequence[Projection] = True,
        progress: Progress | None = None,
    ) -> Self:
        """See `Database.open`; migrations run in a thread."""
        address = configured(config, url)
        statements = await asyncio.to_thread(_migrated, address, migrate=migrate)
        engine = create_async_engine(**address)
        if statements is not None:
            _create_tables(engine, statements)
        try:
            database = cls(engine, projections=projections)
        except BaseException:
            await engine.dispose()
            raise
        try:
            if projections is not False:
                await database.projections.catch_up(progress)
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """See `Database.close`."""
        await self.events.close()
        await self._calls.finish()
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _migrated(address: EngineArguments, *, migrate: bool) -> str | None:
    """Returns what makes the tables of a database in memory: another connection is another database."""
    engine = create_engine(**address)
    try:
        bring_to_head(engine, migrate=migrate)
        return _statements(engine) if is_memory(engine.url) else None
    finally:
        engine.dispose()  # also where nobody waits for this thread any more


def _statements(engine: Engine) -> str:
    with engine.connect() as connection:
        return "\n".join(sqlite_connection(connection).iterdump())


def _create_tables(engine: AsyncEngine, statements: str) -> None:
    created = False

    @event.listens_for(engine.sync_engine, "connect")
    def create(connection: AdaptedConnection, _: object) -> None:
        nonlocal created
        if created:
            connection.run_async(lambda driver: driver.close())
            raise StoreUnavailable(
                "the database in memory is gone: its only connection was closed, with the database or because a "
                "statement of the application's own was cancelled"
            )
        created = True
        connection.run_async(lambda driver: driver.executescript(statements))
