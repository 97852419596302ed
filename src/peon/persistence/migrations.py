"""Migrates a database to the newest revision, also when many processes start at once; refuses unknown revisions."""

import logging
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TextIO

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_missing
from peon.persistence.backends.driver_errors import DriverErrors, database_name, explain
from peon.persistence.errors import MigrationFailed, PersistenceError, SchemaError, SchemaOutOfDate, SchemaTooNew
from peon.persistence.runtime.forking import reset_after_fork

logger = logging.getLogger(__name__)

LOCKED_CONNECTION = "peon_locked_connection"
"""Attribute of Alembic's configuration: the connection of `upgrade`, which has the lock and has saved the copy."""


@cache
def alembic_folder() -> Path:
    """Returns the folder of `alembic.ini`: in an installed package, or the root of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_alembic", package.parents[1]):
        if (folder / "alembic.ini").is_file():
            return folder
    raise PersistenceError("the migration scripts are missing from this installation of peon: install peon again")


@cache
def revisions() -> tuple[str, ...]:
    """Returns all known revisions, oldest first.

    They are the names of the scripts, so that a start-up does not have to import Alembic.
    """
    return tuple(sorted(path.stem for path in (alembic_folder() / "alembic" / "versions").glob("[0-9]*.py")))


def current_revision(connection: Connection) -> str | None:
    """Returns the revision of a database, `None` before the first.

    Raises:
        SchemaError: The table of the revision has more than one row.
    """
    # Only in this schema: another schema of the search path may have another log, or another application's table.
    schema = backend_of(connection).schema_for_new_tables(connection)
    if not connection.dialect.has_table(connection, "alembic_version", schema=schema):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version ORDER BY 1")).scalars().all()
    if len(found) > 1:
        raise SchemaError(
            f"the table alembic_version of {database_name(connection.engine)} has several rows ({', '.join(found)}): "
            "delete all but the one of the revision that its tables have",
            database=database_name(connection.engine),
            revision=None,
            head=revisions()[-1],
        )
    return found[0] if found else None


def is_at_head(engine: Engine) -> bool:
    """Returns whether the database is at the newest revision.

    Raises:
        SchemaTooNew: It is at a revision that this version does not know.
        SchemaError: It is damaged: it has several revisions, or lacks a trigger or a row that appends need.
        StoreUnavailable: It cannot be read.
    """
    return _known_revision(engine, complete=True) == revisions()[-1]


def _known_revision(engine: Engine, *, complete: bool) -> str | None:
    with DriverErrors(engine):
        if is_missing(engine.url):
            return None
        with backend_of(engine).consistent_reads(engine).connect() as connection:
            revision = current_revision(connection)
            is_checked = complete and revision == revisions()[-1]
            missing = backend_of(engine).missing_parts(connection) if is_checked else {}
    refuse_unknown(engine, revision)
    if missing:
        raise SchemaError(
            f"{database_name(engine)} is at revision {revision}, but lacks "
            + "; ".join(f"{part}: {advice}" for part, advice in missing.items()),
            database=database_name(engine),
            revision=revision,
            head=revisions()[-1],
        )
    return revision


def require_head(engine: Engine, *, complete: bool = False) -> None:
    """Raises `SchemaOutOfDate`, with the command to run, unless the database is at the newest revision.

    Args:
        complete: Also raise `SchemaError` if it lacks a trigger or a row that appends need.
    """
    revision = _known_revision(engine, complete=complete)
    if revision == revisions()[-1]:
        return
    ini = shlex.quote(str(alembic_folder() / "alembic.ini"))
    address = shlex.quote(f"url={database_name(engine)}")
    raise SchemaOutOfDate(
        f"{database_name(engine)} is at revision {revision or 'base'}; this version of peon needs {revisions()[-1]}. "
        f"Run:  alembic -c {ini} -x {address} upgrade head",
        database=database_name(engine),
        revision=revision,
        head=revisions()[-1],
    )


def refuse_unknown(engine: Engine, revision: str | None) -> None:
    """Raises `SchemaTooNew` for a revision that this version has no script for."""
    if revision is None or revision in revisions():
        return
    raise SchemaTooNew(
        f"{database_name(engine)} is at revision {revision}, which this version of peon does not know (its newest "
        f"is {revisions()[-1]}): install a newer version of peon, or open another database",
        database=database_name(engine),
        revision=revision,
        head=revisions()[-1],
    )


class Migration(NamedTuple):
    """What a migration has done.

    Attributes:
        before: The revision before it, `None` before the first.
        after: The revision after it.
        copy: A copy of the SQLite file from before the migration, if there is one.
    """

    before: str | None
    after: str | None
    copy: Path | None


def upgrade(engine: Engine) -> None:
    """Migrates a database to the newest revision in one transaction; does nothing if it is there already.

    A populated SQLite file is first copied to a file beside it that is named after the old revision.

    Raises:
        SchemaTooNew: It is at a revision that this version does not know. Nothing was written.
        MigrationFailed: A step failed. The database is as it was before; the message names the copy.
        StoreUnavailable: It cannot be written, or another migration holds the lock for longer than `busy_timeout`.
    """
    if is_at_head(engine):
        return
    migrate(engine, revisions()[-1])


def migrate(engine: Engine, target: str | None) -> Migration:
    """Upgrades or downgrades a database to a revision in one transaction. See `upgrade` for the copy and errors.

    Args:
        target: One of `revisions`; `None` to remove all tables.
    """
    # Imported here, because that takes longer than opening an up-to-date database.
    from alembic import command
    from alembic.config import Config

    with _migration_lock.held(), DriverErrors(engine), migration_transaction(engine) as connection:
        revision = current_revision(connection)
        refuse_unknown(engine, revision)
        if revision == target:
            return Migration(revision, target, None)  # perhaps another process has done it while this one waited
        copy = backend_of(engine).save_copy(connection, revision)
        goal = target or "base"
        logger.info("migrating %s from %s to %s", database_name(engine), revision or "base", goal)
        config = Config(str(alembic_folder() / "alembic.ini"))
        config.attributes[LOCKED_CONNECTION] = connection
        try:
            if is_downgrade(revision, target):
                command.downgrade(config, goal)
            else:
                command.upgrade(config, goal)
        except Exception as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            raise MigrationFailed(
                f"{database_name(engine)} could not be migrated from {revision or 'base'} to {goal} "
                f"and was left as it was: {explain(cause)}"
                + (f". A copy from before the migration is {copy}" if copy else ""),
                database=database_name(engine),
                revision=revision,
                head=revisions()[-1],
            ) from cause
    return Migration(revision, target, copy)


def is_downgrade(revision: str | None, target: str | None) -> bool:
    """Returns whether the target is older than the revision."""
    order = [None, *revisions()]
    return order.index(target) < order.index(revision)


def write_statements(url: URL, revision: str | None, target: str | None, output: TextIO) -> None:
    """Writes the SQL statements of a migration, without connecting to the database."""
    from alembic import command
    from alembic.config import Config

    config = Config(str(alembic_folder() / "alembic.ini"), output_buffer=output)
    address = url.render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))
    span = f"{revision or 'base'}:{target or 'base'}"
    with _migration_lock.held():
        if is_downgrade(revision, target):
            command.downgrade(config, span, sql=True)
        else:
            command.upgrade(config, span, sql=True)


def descriptions() -> dict[str, str]:
    """Returns what each revision does, oldest first."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(Config(str(alembic_folder() / "alembic.ini")))
    found = {script.revision: script.doc for script in scripts.walk_revisions()}
    return {revision: found[revision] for revision in revisions()}


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """Yields a connection in a transaction that excludes other migrations; commits it at the end."""
    with engine.connect() as connection, backend_of(engine).migration_transaction(connection):
        yield connection


class _MigrationLock:
    """Lets one thread of this process migrate at a time, because Alembic keeps its context in global variables."""

    def __init__(self) -> None:
        self._reset()
        reset_after_fork(self, _MigrationLock._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._thread == threading.get_ident():
            # Alembic logs while it migrates, and a handler that stores log records in a database gets here.
            raise PersistenceError(
                "a database was opened in the middle of a migration by the thread that runs it, perhaps by a logging "
                "handler; it would wait for itself without end. Open the database before the migration, or after it."
            )
        with self._lock:
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None


_migration_lock = _MigrationLock()
