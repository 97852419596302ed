"""Addresses of databases: what a URL may be, and what it says."""

import re
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from peon.config import AppConfig
from peon.persistence.errors import PersistenceError, StoreUnavailable

DATABASE_FILE = "peon.db"


def database_url(config: AppConfig) -> URL:
    """Returns the address of the configured database.

    Raises:
        PersistenceError: `database.url` is not an SQLAlchemy URL of SQLite or PostgreSQL.
    """
    if config.database.url is None:
        return URL.create("sqlite", database=str(config.general.data_dir / DATABASE_FILE))
    return parse_url(config.database.url)


def parse_url(url: str | URL) -> URL:
    """Returns the URL as an object of SQLAlchemy.

    Raises:
        PersistenceError: It is malformed, or of a database system or driver that is not supported.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        if re.match(r"postgresql[^/]*://([^/?]*@)?[^/?@]*,[^/?@]*(/|\?|$)", str(url)):
            raise _list_of_hosts() from None
        raise malformed_url() from None
    if "\0" in (parsed.database or ""):
        raise malformed_url()
    if backend not in ("sqlite", "postgresql"):
        raise PersistenceError(
            f"the database's URL is of {backend}; only sqlite and postgresql are supported: give sqlite:///… or "
            "postgresql+psycopg://…"
        )
    if backend == "postgresql" and (driver := parsed.get_driver_name()) != "psycopg":
        raise PersistenceError(f"the database's URL asks for {driver}; give postgresql+psycopg://…")
    return parsed


def _list_of_hosts() -> PersistenceError:
    return PersistenceError(
        "the database's URL has several ports before the name of the database, where SQLAlchemy allows one: "
        "give postgresql+psycopg://user@/database?host=first:5432&host=second:5432"
    )


def malformed_url() -> PersistenceError:
    # The URL is not quoted, and the cause is dropped: both may hold a password.
    return PersistenceError("the database's URL is not one of SQLAlchemy: give sqlite:///… or postgresql+psycopg://…")


def with_absolute_path(url: URL) -> URL:
    """Returns the URL with an absolute path, so that it does not depend on the working directory any more."""
    if not is_file(url):
        return url
    try:
        return url.set(database=str(Path(str(url.database)).expanduser().absolute()))
    except RuntimeError as error:
        raise PersistenceError("the home folder in the database's URL is not known") from error


def with_blocking_driver(url: URL) -> URL:
    """Returns the address with the driver for threads; psycopg serves both threads and event loops."""
    return url.set(drivername="sqlite") if url.drivername == "sqlite+aiosqlite" else url


def with_asynchronous_driver(url: URL) -> URL:
    """Returns the address with the driver for event loops."""
    return url.set(drivername="sqlite+aiosqlite") if url.get_backend_name() == "sqlite" else url


def is_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def is_file(url: URL) -> bool:
    """Returns whether the address is a path; an SQLite URI (`?uri=true`) is not."""
    return url.get_backend_name() == "sqlite" and not is_memory(url) and "uri" not in url.query


def require_existing(url: URL) -> None:
    """Raises `StoreUnavailable` for the address of an SQLite file that does not exist, instead of creating it."""
    if is_missing(url):
        raise StoreUnavailable(f"{url.database} does not exist: name the file of a database")


def is_missing(url: URL) -> bool:
    """Returns whether the address is of an SQLite file that does not exist; connecting would create it."""
    return is_file(url) and not Path(str(url.database)).exists()
