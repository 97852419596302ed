"""Persistence for applications that run coding agents: an append-only event log that survives restarts.

The names below are the whole public interface, together with the domain's events and values in `peon.orchestration`.
The names that begin with `Async`, and `create_async_engine`, need the extra `async`.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from peon.config import AppConfig, ConfigError
from peon.persistence import (
    AppendCondition,
    BackupReport,
    CommandConflict,
    CommandEventsMerged,
    CommandEventsRemoved,
    Compaction,
    ConcurrencyError,
    DamagedFile,
    Database,
    Difference,
    DurableSubscription,
    EventCodec,
    EventDecodeError,
    EventEncodeError,
    EventQuery,
    EventStore,
    ExportReport,
    ImportReport,
    LostRow,
    Maintenance,
    MigrationFailed,
    PersistenceError,
    PositionBeyondEnd,
    Problem,
    Projection,
    ProjectionError,
    Projections,
    ProjectionsOutOfDate,
    ProjectionsTooNew,
    ReadModel,
    RecordedRedaction,
    Redaction,
    Refusal,
    RemovedEvents,
    RestoreReport,
    ResumedSubscription,
    SalvageReport,
    SchemaError,
    SchemaOutOfDate,
    SchemaTooNew,
    SequenceRange,
    SettingError,
    SettingsStore,
    StoredEvent,
    StoreUnavailable,
    Subscription,
    SubscriptionConflict,
    UndecodableEvent,
    Upcaster,
    Vacuum,
    back_up_database,
    copy_database,
    create_engine,
    export_log,
    import_log,
    restore_database,
    salvage_database,
    upgrade,
)

if TYPE_CHECKING:
    from peon.persistence.asynchronous import (
        AsyncDatabase,
        AsyncDurableSubscription,
        AsyncEventStore,
        AsyncMaintenance,
        AsyncProjections,
        AsyncReadModel,
        AsyncSettingsStore,
        AsyncSubscription,
        create_async_engine,
    )

__version__ = "0.1.0"

__all__ = [
    "AppConfig",
    "AppendCondition",
    "AsyncDatabase",
    "AsyncDurableSubscription",
    "AsyncEventStore",
    "AsyncMaintenance",
    "AsyncProjections",
    "AsyncReadModel",
    "AsyncSettingsStore",
    "AsyncSubscription",
    "BackupReport",
    "CommandConflict",
    "CommandEventsMerged",
    "CommandEventsRemoved",
    "Compaction",
    "ConcurrencyError",
    "ConfigError",
    "DamagedFile",
    "Database",
    "Difference",
    "DurableSubscription",
    "EventCodec",
    "EventDecodeError",
    "EventEncodeError",
    "EventQuery",
    "EventStore",
    "ExportReport",
    "ImportReport",
    "LostRow",
    "Maintenance",
    "MigrationFailed",
    "PersistenceError",
    "PositionBeyondEnd",
    "Problem",
    "Projection",
    "ProjectionError",
    "Projections",
    "ProjectionsOutOfDate",
    "ProjectionsTooNew",
    "ReadModel",
    "RecordedRedaction",
    "Redaction",
    "Refusal",
    "RemovedEvents",
    "RestoreReport",
    "ResumedSubscription",
    "SalvageReport",
    "SchemaError",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "SequenceRange",
    "SettingError",
    "SettingsStore",
    "StoreUnavailable",
    "StoredEvent",
    "Subscription",
    "SubscriptionConflict",
    "UndecodableEvent",
    "Upcaster",
    "Vacuum",
    "__version__",
    "back_up_database",
    "copy_database",
    "create_async_engine",
    "create_engine",
    "export_log",
    "import_log",
    "restore_database",
    "salvage_database",
    "upgrade",
]

_ASYNCHRONOUS = frozenset(name for name in __all__ if name.startswith("Async")) | {"create_async_engine"}


def __getattr__(name: str) -> Any:
    """Loads the asynchronous face when it is first used: threads need neither it nor its extra."""
    if name not in _ASYNCHRONOUS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Checked here, because SQLAlchemy refuses only the first import without greenlet.
    if find_spec("greenlet") is None:
        raise ImportError(f"peon.{name} needs the extra 'async', which is not installed: pip install 'peon[async]'")
    from peon.persistence import asynchronous

    return getattr(asynchronous, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
