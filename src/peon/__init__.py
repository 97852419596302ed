"""Persistence for applications that run coding agents: an append-only event log that survives restarts.

The names below are the whole public interface, together with the domain's events and values in `peon.orchestration`.
The names that begin with `Async`, and `create_async_engine`, need the extra `async`: without it, `from peon import *`
leaves them out, and using one raises an `ImportError` that says what to install.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    **dict.fromkeys(__all__, "peon.persistence"),
    **dict.fromkeys(("AppConfig", "ConfigError"), "peon.config"),
    **dict.fromkeys((name for name in __all__ if name.startswith("Async")), "peon.persistence.asynchronous"),
    "create_async_engine": "peon.persistence.asynchronous",
}
"""Where each name comes from."""

_PACKAGES = ("config", "orchestration", "persistence")


# Type checkers would take `__getattr__` for a promise of any name, and need all of `__all__`.
if not TYPE_CHECKING:
    # `from peon import *` loads each name of `__all__`, and would fail for those that cannot be loaded.
    if find_spec("greenlet") is None:
        __all__ = [name for name in __all__ if not _MODULES[name].endswith(".asynchronous")]

    def __getattr__(name: str) -> Any:
        """Loads a name when it is first used: a program loads only what it uses, and threads need no extra."""
        if name in _PACKAGES:
            return import_module(f"peon.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _MODULES[name]
        # Checked here, because SQLAlchemy refuses only the first import without greenlet.
        if module.endswith(".asynchronous") and find_spec("greenlet") is None:
            raise ImportError(f"peon.{name} needs the extra 'async', which is not installed: pip install 'peon[async]'")
        globals()[name] = found = getattr(import_module(module), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
