"""The façade: opens a database, migrates it, and wires the parts."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypedDict

from sqlalchemy import URL, Engine

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent
from peon.persistence import migrations
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import Synchronous, create_engine, database_url
from peon.persistence.event_store import EventStore
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.orchestration.read_model import ReadModel
from peon.persistence.projections import Progress, Projection, Projections
from peon.persistence.settings import SettingsStore


class Database:
    """An open database; close it, or use it as a context manager.

    Attributes:
        engine: For transactions of the application's own.
        events: The log; appending to it keeps the projections up to date, unless they are off.
        projections: To catch up, rebuild and verify the tables that are derived from the log.
        read_model: What those tables hold.
        settings: The application's settings.
    """

    def __init__(self, engine: Engine, *, projections: bool | Sequence[Projection] = True) -> None:
        self.engine = engine
        self.projections = projections_in(engine, projections)
        on_append = None if projections is False else self.projections.apply
        self.events: EventStore[OrchestrationEvent] = EventStore(engine, on_append=on_append)
        self.read_model = ReadModel(engine)
        self.settings = SettingsStore(engine)

    def __repr__(self) -> str:
        return f"<Database {database_name(self.engine)}>"

    @classmethod
    def open(
        cls,
        config: AppConfig | None = None,
        *,
        url: str | URL | None = None,
        migrate: bool = True,
        projections: bool | Sequence[Projection] = True,
        progress: Progress | None = None,
    ) -> Self:
        """Opens a database at the newest revision; creates folder and file of an SQLite one that does not exist.

        Args:
            config: Read from environment and file by default.
            url: Instead of the configured address.
            migrate: Bring an older or empty database to the newest revision; otherwise refuse it.
            projections: Keep the projections: those that are behind the log are caught up first. `False` opens
                the log alone, and leaves them as they are. A list adds projections of your own.
            progress: Called while projections catch up: how many events are done, and how many there are to do.

        Raises:
            ConfigError: The configuration is wrong.
            SchemaTooNew: The database was migrated by a newer version. Nothing was written.
            SchemaOutOfDate: It is not at the newest revision, and `migrate` is off.
            MigrationFailed: It is as it was before.
            StoreUnavailable: Locked, read-only, full, damaged, not a database, not reachable.
            PersistenceError: The URL cannot be used; its driver is not installed.
        """
        engine = create_engine(**configured(config, url))
        try:
            bring_to_head(engine, migrate=migrate)
            database = cls(engine, projections=projections)
            if projections is not False:
                database.projections.catch_up(progress)
        except BaseException:
            engine.dispose()
            raise
        return database

    def close(self) -> None:
        """Closes all connections; the last one of an SQLite file also removes its -wal and -shm files.

        Whoever uses the database again opens connections again.
        """
        self.events.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class EngineArguments(TypedDict):
    """What `create_engine` takes."""

    url: str | URL
    synchronous: Synchronous
    busy_timeout: float


def configured(config: AppConfig | None, url: str | URL | None) -> EngineArguments:
    """Returns the address and its options: those of the configuration, or another address."""
    if not isinstance(config, AppConfig | None):
        raise TypeError("a database is opened with an AppConfig; an address is given as url=…")
    config = config or AppConfig()
    return {
        "url": database_url(config) if url is None else url,
        "synchronous": config.database.synchronous,
        "busy_timeout": config.database.busy_timeout,
    }


def bring_to_head(engine: Engine, *, migrate: bool) -> None:
    """Brings the database to the newest revision, or refuses it."""
    if migrate:
        migrations.upgrade(engine)
    else:
        migrations.require_head(engine)


def projections_in(engine: Engine, chosen: bool | Sequence[Projection]) -> Projections:
    """Returns the domain's own projection, and those that were chosen beside it."""
    if not isinstance(chosen, bool | list | tuple):
        raise TypeError("projections is True, False, or a list of projections of your own")
    others = () if isinstance(chosen, bool) else chosen
    return Projections(engine, [OrchestrationProjection(), *others])
