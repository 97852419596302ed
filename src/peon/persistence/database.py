"""The façade: opens a database, migrates it, and connects the parts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from pydantic import BaseModel
from sqlalchemy import URL, Connection, Engine

from peon.config import AppConfig
from peon.persistence import migrations
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import create_engine, engine_arguments
from peon.persistence.event_store import EventStore, EventT
from peon.persistence.log.codec import EventCodec
from peon.persistence.maintenance import Maintenance
from peon.persistence.orchestration.codec import codec_of_database
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.orchestration.read_model import ReadModel
from peon.persistence.projections import Progress, Projection, Projections
from peon.persistence.settings import SettingsStore

OwnT = TypeVar("OwnT", bound=BaseModel)
"""The union of a codec that is given to `open`. pyright does not infer `EventT` there, because it has a default."""


class Database(Generic[EventT]):
    """An open database. Close it, or use it as a context manager.

    `Database` without an argument is `Database[OrchestrationEvent]`. With events of your own, it is
    `Database[AppEvent]`, where `AppEvent` is the union that the codec was given.

    Args:
        engine: One of `create_engine`, of a migrated database.
        codec: See `open`.
        projections: Projections of your own, kept beside the domain's projection.
        maintain_projections: Whether appends update the projections.

    Attributes:
        engine: For transactions of your own.
        events: The log. Appending to it updates the projections, unless they are not maintained.
        projections: Catches up, rebuilds and verifies the tables that are derived from the log.
        read_model: Reads the tables of the domain's projection.
        settings: The application's settings.
        maintenance: Keeps the database small, and redacts it.
    """

    def __init__(
        self,
        engine: Engine,
        codec: EventCodec[EventT] | None = None,
        *,
        projections: Sequence[Projection] = (),
        maintain_projections: bool = True,
    ) -> None:
        self.engine: Engine = engine
        used = codec_of_database(codec)  # merging two codecs takes 0.4 ms
        self.projections: Projections = all_projections(engine, projections, used)
        on_append = self.projections.apply if maintain_projections else None
        self.events: EventStore[EventT] = EventStore(engine, codec, on_append=on_append)
        self.read_model: ReadModel = ReadModel(engine)
        self.settings: SettingsStore = SettingsStore(engine)
        self.maintenance: Maintenance = Maintenance(engine, used, (OrchestrationProjection(), *projections))

    def __repr__(self) -> str:
        return f"<Database {database_name(self.engine)}>"

    @overload
    @classmethod
    def open(
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
    def open(
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
    ) -> "Database[OwnT]": ...
    @classmethod
    def open(
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
    ) -> "Database[Any]":
        """Opens a database at the newest revision; creates the folder and the file of an SQLite database.

        Args:
            config: The configuration; read from environment and file by default.
            url: An address to use instead of the configured one.
            migrate: Migrate an older or empty database to the newest revision; otherwise refuse it.
            codec: Encodes and decodes the events of the log: a union of `OrchestrationEvent` and events of your own. By
                default, the log has the domain's events only.
            projections: Projections of your own, kept beside the domain's projection.
            maintain_projections: Keep the projections up to date: now, if they are behind the log, and with each
                append. Off, the log is opened alone, and the projections are left as they are.
            progress: Called while projections catch up, with the number of events done and to do.
            connect_args: Further arguments of the driver's `connect`. See `create_engine`.
            echo: Log each statement. See `create_engine`.

        Raises:
            ConfigError: The configuration is wrong.
            SchemaTooNew: A newer version has migrated the database, or the version table is of another Alembic tree.
                Nothing was written.
            SchemaOutOfDate: The database is not at the newest revision, and `migrate` is off.
            MigrationFailed: A migration failed. The database is as it was before.
            SchemaError: A trigger or a row that appends need was removed, or the revision is in another table than
                `database.version_table`; the message says which.
            StoreUnavailable: It is locked, read-only, full, damaged, not a database or not reachable.
            PersistenceError: The URL cannot be used, or its driver is not installed.
            ValueError: The codec lacks events of the domain. See also `EventCodec` and `create_engine`.
        """
        engine = create_engine(**engine_arguments(config, url, connect_args, echo=echo))
        try:
            bring_to_head(engine, migrate=migrate)
            database = cls(engine, codec, projections=projections, maintain_projections=maintain_projections)
            if maintain_projections:
                database.projections.catch_up(progress)
        except BaseException:
            engine.dispose()
            raise
        return database

    @contextmanager
    def read_transaction(self) -> Iterator[Connection]:
        """Yields a connection in a transaction that only reads and sees one committed state throughout.

        It never waits for a writer, and no writer waits for it.
        """
        with backend_of(self.engine).projection_reads(self.engine).begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes all connections; the last one to an SQLite file also removes its -wal and -shm files.

        Using the database again opens connections again, and creates an SQLite file that is missing.
        """
        self.events.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def bring_to_head(engine: Engine, *, migrate: bool) -> None:
    """Migrates the database to the newest revision, or refuses an older one."""
    if migrate:
        migrations.upgrade(engine)
    else:
        migrations.require_head(engine, complete=True)


def all_projections(engine: Engine, own: Sequence[Projection], codec: EventCodec[Any]) -> Projections:
    """Returns the domain's projection and those of the application."""
    if not isinstance(own, list | tuple):
        raise TypeError("projections takes a list of projections of your own; maintain_projections switches all off")
    return Projections(engine, [OrchestrationProjection(), *own], codec)
