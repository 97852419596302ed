"""What a projection is: tables that are derived from the log, event by event."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import Connection, Table

from peon.persistence.log.stored_event import StoredEvent


class Refusal(NamedTuple):
    """An event that was passed over as it contradicts what the tables hold; `reason` shows nothing of its payload."""

    sequence: int
    reason: str


class Projection(ABC):
    """Tables, and how events change them; subclass it to have one of your own.

    Attributes:
        name: Of its position and its problems in the database.
        version: To be raised when `apply` or the tables change: the next start-up then builds them anew.
        tables: All that `apply` writes. Their foreign keys lead to each other only. Those that are not of
            `peon.persistence.schema` are created at start-up, and again with a new version: they need no migration.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    tables: ClassVar[Sequence[Table]]

    @abstractmethod
    def apply(self, connection: Connection, events: Sequence[StoredEvent[Any]]) -> Iterable[Refusal] | None:
        """Writes what the events say into the tables, in the transaction of `connection`.

        The rows must depend on the events alone, and not on how they are split into calls: the same code serves
        appends, catching up, rebuilding and verifying. It must name its tables without a schema, as Core does.

        Args:
            events: Contiguous, but for those that cannot be decoded.

        Returns:
            The events that contradict what is there, if any; nothing of them was written. They fail an append,
            and are kept as problems where they are stored already. Any exception fails either.
        """
