"""The saved positions of durable subscriptions, written in the transactions of their consumers."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select, tuple_, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.backends.same_database import require_connection
from peon.persistence.errors import SubscriptionConflict
from peon.persistence.schema import subscription_positions
from peon.persistence.schema.timestamps import format_timestamp

_columns = subscription_positions.c


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
        if found is None:
            found = in_own_transaction(engine, driver_errors, lambda own: self._add(own, after))
        # Several positions, if the outcome of a commit is unknown.
        self._saved: Positions = (found,)
        self._before: Positions = (found,)

    @property
    def sequence(self) -> int:
        return self._saved[-1].sequence

    def save(self, sequence: int, connection: Connection | None) -> None:
        """Moves the position; raises `SubscriptionConflict` if it is not where this object left it."""
        if connection is not None:
            require_connection(connection, self._engine)
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
        moved = connection.execute(
            update(subscription_positions)
            .where(_columns.name == self._name, tuple_(_columns.sequence, _columns.saved_at).in_(expected))
            .values(saved._asdict())
        )
        if moved.rowcount == 0:
            found = self._read(connection)
            if found in self._saved and sequence == self.sequence:
                return
            raise SubscriptionConflict(self._name, expected[-1].sequence, None if found is None else found.sequence)
        self._before, self._saved = expected, (saved,)

    def _read(self, connection: Connection) -> Position | None:
        row = connection.execute(
            select(_columns.sequence, _columns.saved_at).where(_columns.name == self._name)
        ).one_or_none()
        return None if row is None else Position(*row)


def _now() -> str:
    return format_timestamp(datetime.now(UTC))
