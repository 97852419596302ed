"""What the commands print of a durable subscription with `--json`."""

from datetime import datetime

from pydantic import BaseModel

from peon.persistence.subscriptions.administration import SubscriptionPosition


class Subscription(BaseModel):
    """A durable subscription: the last event that it has handled, and how many follow in the log."""

    name: str
    position: int
    lag: int
    saved_at: datetime


def described(position: SubscriptionPosition, end: int) -> Subscription:
    return Subscription(
        name=position.name,
        position=position.sequence,
        lag=end - position.sequence,
        saved_at=datetime.fromisoformat(position.saved_at),
    )
