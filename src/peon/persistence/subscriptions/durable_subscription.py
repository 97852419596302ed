"""Durable subscriptions: one active consumer a name, which resumes from the saved position."""

from collections.abc import Callable

from sqlalchemy import Connection, Engine

from peon.persistence.log.stored_event import StoredT
from peon.persistence.subscriptions.notifier import Notifier
from peon.persistence.subscriptions.positions import SavedPosition
from peon.persistence.subscriptions.subscription import StopEvent, Subscription
from peon.persistence.subscriptions.tail import Tail


class DurableSubscription(Subscription[StoredT]):
    """A subscription that resumes from the saved position of its name.

    One consumer of a name is active at a time, among all processes. From its first event until it is closed, no other
    consumer of the name is given an event. Another one waits for its first event, and takes over within a tenth of a
    second after the active one was closed or its process has ended. On PostgreSQL, each consumer holds one more
    connection, also while it waits. If the active one loses it, it must become active again before it is given another
    event. If another consumer has moved the position meanwhile, and this one has not saved its last events, asking
    for the next event raises `SubscriptionConflict`.
    """

    def __init__(
        self,
        engine: Engine,
        notifier: Notifier,
        tail: Tail[StoredT],
        stop: StopEvent | None,
        on_caught_up: Callable[[], object] | None,
        saved: SavedPosition,
    ) -> None:
        super().__init__(engine, notifier, tail, stop, on_caught_up)
        self._saved = saved

    def _is_active(self) -> bool:
        return self._saved.consumer_lock.is_held or self._saved.activate(self._yielded, self._move)

    def _move(self, sequence: int) -> None:
        self._tail.move(sequence)
        self._yielded = sequence

    def _has_caught_up(self) -> None:
        self._saved.pass_over(self._yielded, self.position)
        super()._has_caught_up()

    def _release(self) -> None:
        self._saved.consumer_lock.release()

    def save_position(self, *, connection: Connection | None = None) -> None:
        """Saves `position` for this name. Call it when all events that were yielded are processed.

        Args:
            connection: Saves it in the transaction that this connection is in, or begins one; its owner commits.
                The consumer's effects in the same transaction and the position then become durable together or not
                at all. Without a connection, the position is saved in a transaction of its own.

        Raises:
            SubscriptionConflict: The position is not where this subscription left it: another consumer of the name
                moved it, or the transaction of an earlier event was rolled back. Roll back, and start the
                subscription again.
            StoreUnavailable: The database is locked, read-only, full or damaged.
        """
        self._saved.save(self.position, connection)
