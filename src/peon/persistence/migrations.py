"""Brings a database to the newest revision, safely when many start at once, and refuses what it does not know."""

import logging
import os
import shlex
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, exists, func, inspect, select, table, text
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends.driver_errors import DriverErrors, database_name, explain
from peon.persistence.backends.engine import (
    READ_ONLY,
    begin_writing,
    create_private_file,
    is_file,
    is_memory,
    sqlite_connection,
)
from peon.persistence.backends.lock_timeout import limited, lock_timeout_of
from peon.persistence.errors import MigrationFailed, PersistenceError, SchemaOutOfDate, SchemaTooNew
from peon.persistence.schema import append_lock

logger = logging.getLogger(__name__)

POSTGRESQL_LOCK = 0x7065_6F6E
"""Key of the advisory lock that one migrator at a time holds: "peon" in ASCII."""


@cache
def alembic_folder() -> Path:
    """Returns the folder of `alembic.ini`: inside an installed package, or the root of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_alembic", package.parents[1]):
        if (folder / "alembic.ini").is_file():
            return folder
    raise PersistenceError("the migration scripts are missing from this installation of peon: install it again")


@cache
def revisions() -> tuple[str, ...]:
    """Returns all known revisions, oldest first.

    Each is the name of its script, so that a start-up does not have to import Alembic to know them.
    """
    return tuple(sorted(path.stem for path in (alembic_folder() / "alembic" / "versions").glob("[0-9]*.py")))


def schema_for_tables(connection: Connection) -> str | None:
    """Returns the first schema of PostgreSQL's search path, which new tables go into; SQLite has none."""
    return None if connection.dialect.name == "sqlite" else connection.scalar(select(func.current_schema()))


def current_revision(connection: Connection) -> str | None:
    """Returns the revision that a database is at, `None` before the first."""
    # In that schema alone: further down the search path there may be another log, or another application's table.
    if not connection.dialect.has_table(connection, "alembic_version", schema=schema_for_tables(connection)):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def is_at_head(engine: Engine) -> bool:
    """Returns whether the database has all tables that this version needs.

    Raises:
        SchemaTooNew: It is at a revision that this version does not know.
        StoreUnavailable: It cannot be read.
    """
    return _known_revision(engine) == revisions()[-1]


def is_missing(url: URL) -> bool:
    """Returns whether the address is of an SQLite file that is not there; to connect to it would create it."""
    return is_file(url) and not Path(str(url.database)).exists()


def _known_revision(engine: Engine) -> str | None:
    with DriverErrors(engine):
        if is_missing(engine.url):
            return None
        with engine.connect().execution_options(**{READ_ONLY: True}) as connection:
            revision = current_revision(connection)
    refuse_unknown(engine, revision)
    return revision


def require_head(engine: Engine) -> None:
    """Raises `SchemaOutOfDate`, with the command to run, unless `is_at_head`."""
    revision = _known_revision(engine)
    if revision == revisions()[-1]:
        return
    ini = shlex.quote(str(alembic_folder() / "alembic.ini"))
    address = shlex.quote(f"url={database_name(engine)}")
    raise SchemaOutOfDate(
        f"{database_name(engine)} is at revision {revision or 'base'}, and {revisions()[-1]} is needed. "
        f"Run:  alembic -c {ini} -x {address} upgrade head",
        database=database_name(engine),
        revision=revision,
        head=revisions()[-1],
    )


def refuse_unknown(engine: Engine, revision: str | None) -> None:
    """Raises `SchemaTooNew` for a revision that no script of this version has."""
    if revision is None or revision in revisions():
        return
    raise SchemaTooNew(
        f"{database_name(engine)} is at revision {revision}, which this version of peon does not know (its newest "
        f"is {revisions()[-1]}): install a newer peon, or name another database",
        database=database_name(engine),
        revision=revision,
        head=revisions()[-1],
    )


def upgrade(engine: Engine) -> None:
    """Brings a database to the newest revision, or does nothing where it is there; all in one transaction.

    A populated SQLite file is copied first, to a file beside it that is named after the old revision.

    Raises:
        SchemaTooNew: It is at a revision that this version does not know. Nothing was written.
        MigrationFailed: A step failed. The database is as it was; the message names the copy.
        StoreUnavailable: It cannot be written, or another migration holds it for longer than `busy_timeout`.
    """
    if is_at_head(engine):
        return
    # Not at the top: Alembic takes longer to import than an up-to-date database takes to open.
    from alembic import command
    from alembic.config import Config

    with _only_migration_of_this_process(), DriverErrors(engine), migration_transaction(engine) as connection:
        revision = current_revision(connection)
        refuse_unknown(engine, revision)
        if revision == revisions()[-1]:
            return  # another process did it while this one waited for the lock
        copy = save_copy(engine, connection, revision)
        logger.info("migrating %s from %s to %s", database_name(engine), revision or "base", revisions()[-1])
        config = Config(str(alembic_folder() / "alembic.ini"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            raise MigrationFailed(
                f"{database_name(engine)} could not be migrated from {revision or 'base'} to {revisions()[-1]} "
                f"and was left as it was: {explain(cause)}" + (f". A copy from before is {copy}" if copy else ""),
                database=database_name(engine),
                revision=revision,
                head=revisions()[-1],
            ) from cause


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """Yields a connection whose transaction no other migrator can share; commits it at the end."""
    with engine.connect() as connection:
        in_sqlite = connection.dialect.name == "sqlite"
        if not in_sqlite:
            # Otherwise the snapshot could be older than the lock, and miss what the last migrator did.
            connection.execution_options(isolation_level="READ COMMITTED")
        else:
            # SQLite changes a table by making it anew, and dropping the old one would delete what refers to
            # it. Has no effect inside a transaction, so it comes before: https://sqlite.org/lang_altertable.html
            driver = sqlite_connection(connection)
            (enforced,) = driver.execute("PRAGMA foreign_keys").fetchone()
            driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                begin_writing(connection)
                if not in_sqlite:
                    connection.execute(select(limited(lock_timeout_of(connection))))
                    connection.execute(select(func.pg_advisory_xact_lock(POSTGRESQL_LOCK)))
                yield connection
        finally:
            if in_sqlite:
                driver.execute(f"PRAGMA foreign_keys = {enforced}")


_lock = threading.Lock()
_migrating_thread: int | None = None


@contextmanager
def _only_migration_of_this_process() -> Iterator[None]:
    """Alembic keeps its context in global variables, which two threads must not share."""
    global _migrating_thread
    if _migrating_thread == threading.get_ident():
        # Alembic logs while it migrates, and a handler that stores log records in a database comes back here.
        raise PersistenceError(
            "a database was opened in the middle of a migration by the thread that runs it, from a logging "
            "handler perhaps; it would wait for itself for ever. Open the database before, or after."
        )
    with _lock:
        _migrating_thread = threading.get_ident()
        try:
            yield
        finally:
            _migrating_thread = None


def save_copy(engine: Engine, connection: Connection, revision: str | None) -> Path | None:
    """Copies an SQLite file that holds rows to one beside it, private to the owner.

    `connection` holds the write lock, so nothing can be added between the copy and the migration. A copy that
    an earlier attempt left at the same revision is replaced, and only when the new one is complete.

    Returns:
        The copy; `None` where there is nothing to save, and on PostgreSQL.
    """
    if connection.dialect.name != "sqlite" or is_memory(engine.url) or not _is_populated(connection):
        return None
    databases = connection.exec_driver_sql("PRAGMA database_list")
    source = next(Path(database.file) for database in databases if database.name == "main")
    copy = source.with_name(f"{source.name}.{revision or 'base'}.backup")
    partial = copy.with_name(f"{copy.name}.partial")
    logger.info("copying %s to %s before it is migrated", source, copy)
    partial.unlink(missing_ok=True)
    create_private_file(partial)
    with engine.connect() as reader, closing(sqlite3.connect(partial)) as target:
        sqlite_connection(reader).backup(target)
    for suffix in ("-wal", "-shm"):  # of the copy that is replaced, left by a reader that was killed
        copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    partial.replace(copy)
    return copy


def _is_populated(connection: Connection) -> bool:
    empty = {"alembic_version", append_lock.name}  # of data, that is: each has its one row from the beginning
    tables = [name for name in inspect(connection).get_table_names() if name not in empty]
    return any(connection.scalar(select(exists().select_from(table(name)))) for name in tables)


def _start_anew() -> None:
    """In a forked child: the thread that migrates is the parent's, and will never give the lock back here."""
    global _lock, _migrating_thread
    _lock = threading.Lock()
    _migrating_thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
