"""The base class of projections."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table

from peon.persistence.log.stored_event import StoredEvent


class Refusal(NamedTuple):
    """An event that a projection did not apply, because it contradicts the tables; `reason` contains no payload."""

    sequence: int
    reason: str


class Projection(ABC):
    """Tables that are derived from the log, and how events change them. Subclass it for a projection of your own.

    Attributes:
        name: Identifies its position and its problems in the database.
        version: Raise it when `apply` or the tables change: the next start-up then rebuilds the tables.
        tables: All tables that `apply` writes. Their foreign keys refer only to each other. Tables that are not in
            `peon.persistence.schema` are created at start-up, and again for a new version; they need no migration.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    tables: ClassVar[Sequence[Table]]

    @abstractmethod
    def apply(self, connection: Connection, events: Sequence[StoredEvent[Any]]) -> Iterable[Refusal] | None:
        """Writes what the events say into the tables, in the transaction of `connection`.

        The rows must depend only on the events, and not on how the events are split into calls, because the same
        code serves appends, catch-up, rebuilds and verification. Statements must name the tables without a schema,
        as Core does.

        Args:
            events: Contiguous events, except for those that cannot be decoded.

        Returns:
            The events that contradict the tables, if any; nothing of them was written. In an append they raise
            `ProjectionError`; events that are stored already are recorded as problems. An exception fails the
            append, or the catch-up; it keeps its type, and gets a note with the projection and the event.
        """

    def finish(self, connection: Connection) -> None:  # noqa: B027 - most projections put nothing off
        """Does what `apply` has put off, if it does so. A rebuild calls it before readers see the new rows."""

    def visible_rows(
        self,
        tables: Mapping[str, Table],  # noqa: ARG002 - for subclasses
    ) -> Mapping[str, ColumnElement[bool]]:
        """Returns which rows readers see, for tables that hold others as well; `verify` compares only these.

        Args:
            tables: The tables of the projection by name, in the schema where they are compared.

        Returns:
            Conditions by the name of the table; readers see all rows of a table without one.
        """
        return {}
