"""The event log on SQLite or PostgreSQL, and the migrations of its database."""

from peon.persistence.codec import EventCodec, UndecodableEvent, Upcaster
from peon.persistence.database import Database
from peon.persistence.engine import create_engine
from peon.persistence.errors import (
    EventDecodeError,
    EventEncodeError,
    MigrationFailed,
    PersistenceError,
    SchemaError,
    SchemaOutOfDate,
    SchemaTooNew,
    StoreUnavailable,
)
from peon.persistence.event_store import EventStore
from peon.persistence.migrations import upgrade
from peon.persistence.stored_events import StoredEvent

__all__ = [
    "Database",
    "EventCodec",
    "EventDecodeError",
    "EventEncodeError",
    "EventStore",
    "MigrationFailed",
    "PersistenceError",
    "SchemaError",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "StoreUnavailable",
    "StoredEvent",
    "UndecodableEvent",
    "Upcaster",
    "create_engine",
    "upgrade",
]
