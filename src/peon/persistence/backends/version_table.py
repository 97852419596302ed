"""The table that holds the revision of Peon's tables. An engine knows its name."""

from sqlalchemy import Connection, Engine

from peon.config import DEFAULT_VERSION_TABLE, VERSION_TABLE_NAMES, is_version_table_name
from peon.persistence.schema import metadata

VERSION_TABLE = "peon_version_table"
"""Execution option of an engine, so that the engines and connections that are derived from it know the name, too."""

_TAKEN = {
    *metadata.tables,
    *(str(index.name) for table in metadata.tables.values() for index in table.indexes),  # share the tables' names
}


def version_table_of(database: Engine | Connection) -> str:
    """Returns the name of the version table; the default one for an engine that `create_engine` did not create."""
    name: str = database.get_execution_options().get(VERSION_TABLE, DEFAULT_VERSION_TABLE)
    return name


def checked_version_table(name: str) -> str:
    """Returns the name if a version table may have it.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not allowed, or the name of one of Peon's tables or indexes.
    """
    if not isinstance(name, str):
        raise TypeError(f"version_table is the name of a table, not {type(name).__name__}")
    if not is_version_table_name(name):
        raise ValueError(f"version_table is {name!r}: give {VERSION_TABLE_NAMES}")
    if name in _TAKEN:
        raise ValueError(f"version_table is {name!r}, which is one of Peon's own tables or indexes: give another name")
    return name
