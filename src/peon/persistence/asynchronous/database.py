"""`Database` for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Self, overload

from sqlalchemy import URL, event
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from peon.config import AppConfig
from peon.persistence.asynchronous.event_store import AsyncEventStore
from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.asynchronous.maintenance import AsyncMaintenance
from peon.persistence.asynchronous.projections import AsyncProjections
from peon.persistence.asynchronous.read_model import AsyncReadModel
from peon.persistence.asynchronous.settings import AsyncSettingsStore
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import EngineArguments, create_async_engine, create_engine, engine_arguments
from peon.persistence.backends.sqlite import dump_memory
from peon.persistence.database import OwnT, all_projections, bring_to_head
from peon.persistence.errors import StoreUnavailable
from peon.persistence.event_store import EventT
from peon.persistence.log.codec import EventCodec
from peon.persistence.maintenance import Maintenance
from peon.persistence.orchestration.codec import codec_of_database
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.orchestration.read_model import ReadModel
from peon.persistence.projections import Progress, Projection
from peon.persistence.settings import SettingsStore


class AsyncDatabase(Generic[EventT]):
    """An open database, for any number of tasks of one event loop. See `Database`.

    The same code runs, on `aiosqlite` and on psycopg's asynchronous connections. If a task is cancelled during a
    call, the call still runs to its end, and `close` waits for it.

    Args:
        engine: One of `create_async_engine`, of a migrated database.
        codec: See `Database`.
        projections: See `Database`.
        maintain_projections: See `Database`.

    Attributes:
        engine: For transactions of your own.
        events: See `Database`.
        projections: See `Database`.
        read_model: See `Database`.
        settings: See `Database`.
        maintenance: See `Database`.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        codec: EventCodec[EventT] | None = None,
        *,
        projections: Sequence[Projection] = (),
        maintain_projections: bool = True,
    ) -> None:
        self.engine: AsyncEngine = engine
        self._calls = Calls()
        used = codec_of_database(codec)
        blocking = all_projections(engine.sync_engine, projections, used)
        on_append = blocking.apply if maintain_projections else None
        self.events: AsyncEventStore[EventT] = AsyncEventStore(engine, codec, on_append=on_append, calls=self._calls)
        self.projections: AsyncProjections = AsyncProjections(blocking, self._calls)
        self.read_model: AsyncReadModel = AsyncReadModel(ReadModel(engine.sync_engine), self._calls)
        self.settings: AsyncSettingsStore = AsyncSettingsStore(SettingsStore(engine.sync_engine), self._calls)
        maintenance = Maintenance(engine.sync_engine, used, (OrchestrationProjection(), *projections))
        self.maintenance: AsyncMaintenance = AsyncMaintenance(maintenance, self._calls)

    def __repr__(self) -> str:
        return f"<AsyncDatabase {database_name(self.engine.sync_engine)}>"

    @overload
    @classmethod
    async def open(
        cls,
        config: AppConfig | None = None,
        *,
        url: str | URL | None = None,
        migrate: bool = True,
        codec: EventCodec[EventT] | None = None,
        projections: Sequence[Projection] = (),
        maintain_projections: bool = True,
        progress: Progress | None = None,
        connect_args: Mapping[str, Any] | None = None,
        echo: bool = False,
    ) -> Self: ...
    @overload
    @classmethod
    async def open(
        cls,
        config: AppConfig | None = None,
        *,
        url: str | URL | None = None,
        migrate: bool = True,
        codec: EventCodec[OwnT],
        projections: Sequence[Projection] = (),
        maintain_projections: bool = True,
        progress: Progress | None = None,
        connect_args: Mapping[str, Any] | None = None,
        echo: bool = False,
    ) -> "AsyncDatabase[OwnT]": ...
    @classmethod
    async def open(
        cls,
        config: AppConfig | None = None,
        *,
        url: str | URL | None = None,
        migrate: bool = True,
        codec: EventCodec[Any] | None = None,
        projections: Sequence[Projection] = (),
        maintain_projections: bool = True,
        progress: Progress | None = None,
        connect_args: Mapping[str, Any] | None = None,
        echo: bool = False,
    ) -> "AsyncDatabase[Any]":
        """See `Database.open`; migrations run in a thread."""
        arguments = engine_arguments(config, url, connect_args, echo=echo)
        statements = await asyncio.to_thread(_migrate, arguments, migrate=migrate)
        engine = create_async_engine(**arguments)
        if statements is not None:
            _create_tables(engine, statements)
        try:
            database = cls(engine, codec, projections=projections, maintain_projections=maintain_projections)
        except BaseException:
            await engine.dispose()
            raise
        try:
            if maintain_projections:
                await database.projections.catch_up(progress)
        except BaseException:
            await database.close()
            raise
        return database

    @asynccontextmanager
    async def read_transaction(self) -> AsyncIterator[AsyncConnection]:
        """See `Database.read_transaction`."""
        reads = AsyncEngine(backend_of(self.engine.sync_engine).projection_reads(self.engine.sync_engine))
        async with reads.begin() as connection:
            yield connection

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


def _migrate(arguments: EngineArguments, *, migrate: bool) -> str | None:
    """Returns the statements that create the tables of a database in memory, as each connection has its own."""
    engine = create_engine(**arguments)
    try:
        bring_to_head(engine, migrate=migrate)
        return dump_memory(engine) if is_memory(engine.url) else None
    finally:
        engine.dispose()  # here, as the task that waits for this thread may be cancelled


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
