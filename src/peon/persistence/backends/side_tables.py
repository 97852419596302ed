"""What a rebuild needs of a database system to replace the rows of tables at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Table

SIDE_PREFIX = "peon_rebuild_"
"""Of the names of side tables and their indexes."""


class TablesChanged(Exception):  # noqa: N818 - handled where it is met
    """Tables have another shape than when their side tables were created."""


class SideTables(ABC):
    """Empty tables of the same shape beside others, for rows that are exchanged with those of the others at once.

    They are ordinary tables, so that they survive their process. Those that a killed process has left have the same
    names. They are parents first.
    """

    @abstractmethod
    def are_created_as(self, connection: Connection, declared: Sequence[Table]) -> bool:
        """Returns whether some of the tables are exactly as they would be if they were created now.

        Args:
            declared: These tables, without a schema.
        """

    @abstractmethod
    def create(self, connection: Connection) -> None:
        """Creates the side tables, empty, with all indexes."""

    @abstractmethod
    def copy(self, connection: Connection, sources: Sequence[Table]) -> Iterator[None]:
        """Copies the rows of other tables into the side tables, a few with each step of the iterator.

        A transaction may end between two steps.
        """

    @abstractmethod
    def exchange(self, connection: Connection) -> None:
        """Exchanges the rows of the tables and of the side tables, in the same time for any number of rows.

        Raises:
            TablesChanged: They do not have the same shape.
        """

    @abstractmethod
    def empty(self, connection: Connection) -> Iterator[None]:
        """Removes the side tables that exist, a few rows with each step of the iterator.

        A transaction may end between two steps.
        """

    @abstractmethod
    def flush(self, connection: Connection) -> None:
        """Writes to the disk what was committed, outside a transaction; others wait, but not for readers."""

    @abstractmethod
    def forget(self, connection: Connection) -> None:
        """Removes the side tables without reading their pages, which may be damaged."""

    @abstractmethod
    def writing(self, connection: Connection) -> AbstractContextManager[None]:
        """Lets `copy` and `empty` write rows in any order; begins and ends outside a transaction."""

    @abstractmethod
    def exchanging(self, connection: Connection) -> AbstractContextManager[None]:
        """Rolls back what an error leaves undone, so that the connection sees the tables as others do."""


class NewTables(ABC):
    """Copies of empty tables, with all that belongs to them, which take the places of those in the same transaction.

    Attributes:
        tables: In the order of those that they replace, parents first.
    """

    tables: Sequence[Table]

    @abstractmethod
    def can_replace(self, connection: Connection) -> bool:
        """Returns whether nothing would be lost with the old tables, and the connection may replace them."""

    @abstractmethod
    def are_created_as(self, connection: Connection, declared: Sequence[Table]) -> bool:
        """See `SideTables.are_created_as`."""

    @abstractmethod
    def wait_for_others(self, connection: Connection) -> None:
        """Waits for other transactions that replace the tables, and keeps more from beginning.

        Until then, the transaction must not have read the tables or their positions: the others wait for readers.
        """

    @abstractmethod
    def create(self, connection: Connection) -> None:
        """Creates the new tables, without indexes and keys."""

    @abstractmethod
    def fill(self, connection: Connection, sources: Sequence[Table]) -> None:
        """Copies the rows of other tables into the new ones, and adds indexes and keys."""

    @abstractmethod
    def standing_in(self, connection: Connection) -> AbstractContextManager[None]:
        """Lets statements that name the old tables read and write the new ones, on this connection only."""

    @abstractmethod
    def try_to_replace(self, connection: Connection) -> bool:
        """Lets the new tables take the places of the old ones, without waiting long for readers.

        Returns:
            Whether it did. Then the end of the log and the tables are locked until the transaction ends.

        Raises:
            TablesChanged: The old tables are not what they were when the new ones were created.
        """

    @abstractmethod
    def drop(self, connection: Connection) -> None:
        """Drops the new tables instead."""
