"""The same face for the tasks of an event loop, around the same code."""

from peon.persistence.asynchronous.database import AsyncDatabase
from peon.persistence.asynchronous.event_store import AsyncEventStore
from peon.persistence.asynchronous.facades import AsyncProjections, AsyncReadModel, AsyncSettingsStore
from peon.persistence.asynchronous.subscription import AsyncNamedSubscription, AsyncSubscription
from peon.persistence.backends.engine import create_async_engine

__all__ = [
    "AsyncDatabase",
    "AsyncEventStore",
    "AsyncNamedSubscription",
    "AsyncProjections",
    "AsyncReadModel",
    "AsyncSettingsStore",
    "AsyncSubscription",
    "create_async_engine",
]
