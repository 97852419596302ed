"""The event log on SQLite or PostgreSQL, with projections, subscriptions, settings and schema migrations."""

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
from peon.persistence.subscriptions import DurableSubscription, Subscription

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
