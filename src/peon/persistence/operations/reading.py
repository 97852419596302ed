"""Opens a database to look at it, in whatever state it is, and changes nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine

from peon.config import AppConfig
from peon.persistence.backends.address import is_memory, is_missing
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import create_reading_engine, engine_arguments
from peon.persistence.errors import PersistenceError, StoreUnavailable

if TYPE_CHECKING:
    from peon.persistence.database import Database


@contextmanager
def opened_for_reading(
    config: AppConfig | None = None,
    *,
    url: str | URL | None = None,
    temporary_tables: bool = False,
    connect_args: Mapping[str, Any] | None = None,
) -> Iterator["Database"]:
    """Yields a database that is neither created, migrated nor caught up, and whose parts can only read.

    The database may be at an older or newer revision, where statements fail that need other tables. It may be a file
    that this user cannot write to, or one that other processes use.

    Args:
        config: See `Database.open`.
        url: See `Database.open`.
        temporary_tables: Allow temporary tables, which `projections.verify` needs.
        connect_args: See `Database.open`.

    Raises:
        ConfigError: The configuration is wrong.
        StoreUnavailable: There is no such file. Other reasons are met when the database is first read.
        PersistenceError: The URL cannot be used, or its driver is not installed; a database in memory was named.
    """
    from peon.persistence.database import Database  # a health probe needs only the engine

    engine = engine_for_reading(config, url=url, temporary_tables=temporary_tables, connect_args=connect_args)
    database = Database(engine, maintain_projections=False)
    try:
        yield database
    finally:
        database.close()


def engine_for_reading(
    config: AppConfig | None = None,
    *,
    url: str | URL | None = None,
    temporary_tables: bool = False,
    connect_args: Mapping[str, Any] | None = None,
) -> Engine:
    """Returns the engine of `opened_for_reading`, with the same arguments and errors. The caller disposes of it."""
    arguments = engine_arguments(config, url, connect_args, echo=False)
    engine = create_reading_engine(
        arguments["url"],
        access="read and compute" if temporary_tables else "read",
        busy_timeout=arguments["busy_timeout"],
        pool_size=arguments["pool_size"],
        pool_timeout=arguments["pool_timeout"],
        connect_args=arguments["connect_args"],
        version_table=arguments["version_table"],
    )
    if is_memory(engine.url):
        raise PersistenceError("a database in memory exists only in the process that has created it: name a file")
    if is_missing(engine.url):
        raise StoreUnavailable(
            f"there is no database {database_name(engine)}: name an existing file, or create it with  peon migrate"
        )
    return engine
