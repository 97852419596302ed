"""The event log on SQLite or PostgreSQL, with projections, subscriptions, settings and schema migrations."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peon.persistence.backends.engine import create_engine
    from peon.persistence.database import Database
    from peon.persistence.errors import (
        CommandConflict,
        CommandEventsMerged,
        CommandEventsRemoved,
        ConcurrencyError,
        DamagedFile,
        EventDecodeError,
        EventEncodeError,
        MigrationFailed,
        PersistenceError,
        PositionBeyondEnd,
        ProjectionError,
        ProjectionsOutOfDate,
        ProjectionsTooNew,
        SchemaError,
        SchemaOutOfDate,
        SchemaTooNew,
        SettingError,
        StoreUnavailable,
        SubscriptionConflict,
    )
    from peon.persistence.event_store import EventStore
    from peon.persistence.log.codec import EventCodec, UndecodableEvent, Upcaster
    from peon.persistence.log.query import AppendCondition, EventQuery
    from peon.persistence.log.stored_event import StoredEvent
    from peon.persistence.maintenance import (
        Compaction,
        Maintenance,
        RecordedRedaction,
        Redaction,
        RemovedEvents,
        SequenceRange,
        Vacuum,
    )
    from peon.persistence.migrations import upgrade
    from peon.persistence.operations.backups import (
        BackupReport,
        RestoreReport,
        ResumedSubscription,
        back_up_database,
        restore_database,
    )
    from peon.persistence.operations.copying import (
        ExportReport,
        ImportReport,
        LostRow,
        SalvageReport,
        copy_database,
        export_log,
        import_log,
        salvage_database,
    )
    from peon.persistence.orchestration.read_model import ReadModel
    from peon.persistence.projections import Difference, Problem, Projection, Projections, Refusal
    from peon.persistence.settings import SettingsStore
    from peon.persistence.subscriptions.durable_subscription import DurableSubscription
    from peon.persistence.subscriptions.subscription import Subscription

    NamedSubscription = DurableSubscription  # the old name, kept for code written before 0.1

__all__ = [
    "AppendCondition",
    "BackupReport",
    "CommandConflict",
    "CommandEventsMerged",
    "CommandEventsRemoved",
    "Compaction",
    "ConcurrencyError",
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
    "NamedSubscription",
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
    "back_up_database",
    "copy_database",
    "create_engine",
    "export_log",
    "import_log",
    "restore_database",
    "salvage_database",
    "upgrade",
]

_NAMES = {
    "backends.engine": ("create_engine",),
    "database": ("Database",),
    "errors": (
        "CommandConflict",
        "CommandEventsMerged",
        "CommandEventsRemoved",
        "ConcurrencyError",
        "DamagedFile",
        "EventDecodeError",
        "EventEncodeError",
        "MigrationFailed",
        "PersistenceError",
        "PositionBeyondEnd",
        "ProjectionError",
        "ProjectionsOutOfDate",
        "ProjectionsTooNew",
        "SchemaError",
        "SchemaOutOfDate",
        "SchemaTooNew",
        "SettingError",
        "StoreUnavailable",
        "SubscriptionConflict",
    ),
    "event_store": ("EventStore",),
    "log.codec": ("EventCodec", "UndecodableEvent", "Upcaster"),
    "log.query": ("AppendCondition", "EventQuery"),
    "log.stored_event": ("StoredEvent",),
    "maintenance": (
        "Compaction",
        "Maintenance",
        "RecordedRedaction",
        "Redaction",
        "RemovedEvents",
        "SequenceRange",
        "Vacuum",
    ),
    "migrations": ("upgrade",),
    "operations.backups": (
        "BackupReport",
        "RestoreReport",
        "ResumedSubscription",
        "back_up_database",
        "restore_database",
    ),
    "operations.copying": (
        "ExportReport",
        "ImportReport",
        "LostRow",
        "SalvageReport",
        "copy_database",
        "export_log",
        "import_log",
        "salvage_database",
    ),
    "orchestration.read_model": ("ReadModel",),
    "projections": ("Difference", "Problem", "Projection", "Projections", "Refusal"),
    "settings": ("SettingsStore",),
    "subscriptions.durable_subscription": ("DurableSubscription",),
    "subscriptions.subscription": ("Subscription",),
}
"""The names of each module. The imports above are the same, for type checkers."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names}


# Type checkers would take it for a promise of any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Loads a name when it is first used, so that a program loads only what it uses."""
        original = "DurableSubscription" if name == "NamedSubscription" else name
        if original not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[original]}")
        globals()[name] = found = getattr(module, original)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
