"""The space that a database and its parts take."""

from typing import NamedTuple


class Space(NamedTuple):
    """The space that a database takes, in bytes.

    Attributes:
        total: All of it.
        free: The part that holds no rows, as far as it is known without reading the database.
        can_shrink: Whether a part of `free` can be given back without writing everything again.
        available: What is free on the disk; `None` if it is not known.
    """

    total: int
    free: int
    can_shrink: bool
    available: int | None


class Storage(NamedTuple):
    """The bytes that a database takes.

    Attributes:
        database: In its file, or in the tables and indexes of its schema.
        write_ahead_log: In the -wal file; `None` if it has none of its own.
        free: In pages that can be used again; `None` if that is unknown.
    """

    database: int
    write_ahead_log: int | None
    free: int | None


class SizeOfPart(NamedTuple):
    """The bytes of one table or index, which belongs to a table."""

    name: str
    table: str
    bytes: int

    @property
    def is_index(self) -> bool:
        return self.name != self.table
