"""Subscriptions: replay stored events, then follow new ones."""

from peon.persistence.subscriptions.durable_subscription import DurableSubscription
from peon.persistence.subscriptions.notifier import Notifier, notifier_of
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import StopEvent, Subscription
from peon.persistence.subscriptions.tail import Tail

__all__ = [
    "DurableSubscription",
    "Notifier",
    "SavedPosition",
    "StopEvent",
    "Subscription",
    "Tail",
    "notifier_of",
]
