"""Subscriptions: what is stored, and then what comes."""

from peon.persistence.subscriptions.notifier import Arrivals, arrivals_of
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import EndEvent, NamedSubscription, Subscription
from peon.persistence.subscriptions.tail import Tail

__all__ = [
    "Arrivals",
    "EndEvent",
    "NamedSubscription",
    "SavedPosition",
    "Subscription",
    "Tail",
    "arrivals_of",
]
