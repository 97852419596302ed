"""How far named subscriptions have come: saved in the transactions of their consumers."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.engine import begin_writing, consistent_reads
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.backends.same_database import require_connection
from peon.persistence.errors import SubscriptionConflict
from peon.persistence.schema import subscription_positions
from peon.persistence.schema.timestamps import format_timestamp

_columns = subscription_positions.c

_ADD: dict[str, Insert] = {
    "sqlite": sqlite.insert(subscription_positions).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(subscription_positions).on_conflict_do_nothing(),
}


class Position(NamedTuple):
    """A row of the table; the moment tells one consumer's save from another's of the same event."""

    sequence: int
    saved_at: str


Positions = tuple[Position, ...]


class SavedPosition:
    """Up to which event the consumer of a name has come; the first one of the name is added.

    Args:
        after: Where a new name begins.

    Raises:
        TypeError: The name is not text.
        ValueError: The name is not printable.
        StoreUnavailable: The database cannot be read; or not written, where the name is new.

    Attributes:
        sequence: The position, as far as this object knows.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors, name: str, after: int) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a subscription is text, not {type(name).__name__}")
        if not name.isprintable() or not name:
            raise ValueError(f"the name of a subscription is printable text, not {name!r}")
        self._engine = engine
        self._driver_errors = driver_errors
        self._name = name
        with driver_errors, consistent_reads(engine).connect() as connection:
            found = self._read(connection)
        if found is None:
            found = in_own_transaction(engine, driver_errors, lambda own: self._add(own, after))
        # Several, where nobody knows whether a commit took place.
        self._saved: Positions = (found,)
        self._before: Positions = (found,)

    @property
    def sequence(self) -> int:
        return self._saved[-1].sequence

    def save(self, sequence: int, connection: Connection | None) -> None:
        """Moves the position, from where this object left it; raises `SubscriptionConflict` where it is not there."""
        if connection is not None:
            require_connection(connection, self._engine)
            with self._driver_errors:
                begin_writing(connection)
                self._move(connection, sequence)
            return

        def move(own: Connection) -> tuple[Positions, Positions]:
            self._move(own, sequence)
            moved = self._before, self._saved
            self._before = self._saved = (*self._before, *self._saved)  # until the commit is answered
            return moved

        self._before, self._saved = in_own_transaction(self._engine, self._driver_errors, move)

    def _add(self, connection: Connection, after: int) -> Position:
        row = {"name": self._name, "sequence": after, "saved_at": _now()}
        connection.execute(_ADD[connection.dialect.name], row)
        found = self._read(connection)
        assert found is not None  # noqa: S101
        return found

    def _move(self, connection: Connection, sequence: int) -> None:
        # Once more for the same event: then the transaction of the first time was undone, or this is idle repetition.
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
