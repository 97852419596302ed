"""The same interface for the tasks of an event loop, around the same code."""

from peon.persistence.asynchronous.database import AsyncDatabase
from peon.persistence.asynchronous.durable_subscription import AsyncDurableSubscription
from peon.persistence.asynchronous.event_store import AsyncEventStore
from peon.persistence.asynchronous.maintenance import AsyncMaintenance
from peon.persistence.asynchronous.projections import AsyncProjections
from peon.persistence.asynchronous.read_model import AsyncReadModel
from peon.persistence.asynchronous.settings import AsyncSettingsStore
from peon.persistence.asynchronous.subscription import AsyncSubscription
from peon.persistence.backends.engine import create_async_engine

__all__ = [
    "AsyncDatabase",
    "AsyncDurableSubscription",
    "AsyncEventStore",
    "AsyncMaintenance",
    "AsyncProjections",
    "AsyncReadModel",
    "AsyncSettingsStore",
    "AsyncSubscription",
    "create_async_engine",
]
