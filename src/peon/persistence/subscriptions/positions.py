"""The saved positions of durable subscriptions, written in the transactions of their consumers."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select, tuple_, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.backends.same_database import require_connection
from peon.persistence.errors import StoreUnavailable, SubscriptionConflict
from peon.persistence.schema import subscription_positions
from peon.persistence.schema.timestamps import format_timestamp

_columns = subscription_positions.c

PASSED_OVER_EVENTS = 10_000
"""Events that a filter leaves out between two saved positions. A start reads at most as many again, in about 10 ms."""


class Position(NamedTuple):
    """A row of the table; `saved_at` distinguishes what two consumers saved for the same event."""

    sequence: int
    saved_at: str


Positions = tuple[Position, ...]


class SavedPosition:
    """The position of a durable subscription in the log; a new name is added to the table.

    Args:
        after: The position of a new name.

    Raises:
        TypeError: The name is not text.
        ValueError: The name is not printable.
        StoreUnavailable: The database cannot be read, or not written if the name is new.

    Attributes:
        sequence: The position, as far as this object knows.
        consumer_lock: Held by the one active consumer of the name.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors, name: str, after: int) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a subscription is text, not {type(name).__name__}")
        if not name.isprintable() or not name:
            raise ValueError(f"the name of a subscription is printable text, not {name!r}")
        self._engine = engine
        self._backend = backend_of(engine)
        self._driver_errors = driver_errors
        self._name = name
        with driver_errors, self._backend.consistent_reads(engine).connect() as connection:
            found = self._read(connection)
            self.consumer_lock = self._backend.consumer_lock(connection, name)
        if found is None:
            found = in_own_transaction(engine, driver_errors, lambda own: self._add(own, after))
        self._was_active = False
        # Several positions, if the outcome of a commit is unknown.
        self._saved: Positions = (found,)
        self._before: Positions = (found,)

    @property
    def sequence(self) -> int:
        return self._saved[-1].sequence

    def activate(self, yielded: int, move: Callable[[int], object]) -> bool:
        """Makes this the active consumer of the name, unless there is another; does not wait.

        Args:
            yielded: The sequence of the last event that this consumer was given.
            move: Called with the position, if another consumer has moved it.

        Returns:
            Whether this is the active consumer.

        Raises:
            SubscriptionConflict: Another consumer has moved the position, and this one has not saved its last events.
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors:
            if not self.consumer_lock.acquire():
                return False
        try:
            with self._driver_errors, self._backend.single_reads(self._engine).connect() as connection:
                found = self._read(connection)
            if found not in self._before and found not in self._saved:
                if found is None or yielded > self.sequence:
                    raise self._conflict(self.sequence, found)
                self._before = self._saved = (found,)
                move(found.sequence)
            self._was_active = True
        except BaseException:
            self.consumer_lock.release()
            raise
        return True

    def save(self, sequence: int, connection: Connection | None) -> None:
        """Moves the position; raises `SubscriptionConflict` if it is not where this object left it."""
        if connection is not None:
            require_connection(connection, self._engine)
        if not self._was_active:
            return  # there is nothing new to save, and another consumer may be active
        if connection is not None:
            with self._driver_errors:
                self._backend.begin_writing(connection)
                self._move(connection, sequence)
            return

        def move(own: Connection) -> tuple[Positions, Positions]:
            self._move(own, sequence)
            moved = self._before, self._saved
            self._before = self._saved = (*self._before, *self._saved)  # until the outcome of the commit is known
            return moved

        self._before, self._saved = in_own_transaction(self._engine, self._driver_errors, move)

    def has_passed_over(self, yielded: int, looked_at: int) -> bool:
        """Returns whether `pass_over` would save the position, without asking the database."""
        return yielded <= self.sequence and looked_at - self.sequence >= PASSED_OVER_EVENTS

    def pass_over(self, yielded: int, looked_at: int) -> None:
        """Saves that a long part of the log has no event for this consumer, so that no start reads it again.

        It does so only if the consumer has saved all events that it was given. It does not wait for a lock, which the
        consumer itself may hold, and then leaves it to a later call.

        Args:
            yielded: See `activate`.
            looked_at: The sequence up to which all events for this consumer were yielded.
        """
        if not self.has_passed_over(yielded, looked_at):
            return
        before, saved = self._saved, Position(looked_at, _now())
        with suppress(StoreUnavailable), self._driver_errors:
            with self._backend.transaction_without_waiting(self._engine) as connection:
                if not self._update(connection, before, saved):
                    return  # the consumer's own transaction was rolled back, or another consumer has moved the position
                self._saved = (saved, *before)  # until the outcome of the commit is known
            self._before = self._saved = (saved,)

    def _add(self, connection: Connection, after: int) -> Position:
        row = {"name": self._name, "sequence": after, "saved_at": _now()}
        connection.execute(self._backend.insert(subscription_positions).on_conflict_do_nothing(), row)
        found = self._read(connection)
        assert found is not None  # noqa: S101
        return found

    def _move(self, connection: Connection, sequence: int) -> None:
        # The same event again: either the first transaction was undone, or this call changes nothing.
        expected = self._before if sequence == self.sequence else self._saved
        saved = Position(sequence, _now())
        if not self._update(connection, expected, saved):
            found = self._read(connection)
            if found in self._saved and sequence == self.sequence:
                return
            raise self._conflict(expected[-1].sequence, found)
        self._before, self._saved = expected, (saved,)

    def _update(self, connection: Connection, expected: Positions, saved: Position) -> bool:
        moved = connection.execute(
            update(subscription_positions)
            .where(_columns.name == self._name, tuple_(_columns.sequence, _columns.saved_at).in_(expected))
            .values(saved._asdict())
        )
        return moved.rowcount == 1

    def _conflict(self, expected: int, found: Position | None) -> SubscriptionConflict:
        return SubscriptionConflict(self._name, expected, None if found is None else found.sequence)

    def _read(self, connection: Connection) -> Position | None:
        row = connection.execute(
            select(_columns.sequence, _columns.saved_at).where(_columns.name == self._name)
        ).one_or_none()
        return None if row is None else Position(*row)


def _now() -> str:
    return format_timestamp(datetime.now(UTC))
