"""Migrates a database, also when many processes start at once."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name, explain
from peon.persistence.errors import MigrationFailed, PersistenceError
from peon.persistence.migrations.revisions import alembic_folder, checked_revision, known_revision, revisions
from peon.persistence.runtime.forking import reset_after_fork
from peon.persistence.runtime.log_records import MIGRATIONS, report
from peon.persistence.runtime.telemetry import telemetry_of

LOCKED_CONNECTION = "peon_locked_connection"
"""Attribute of Alembic's configuration: the connection of `upgrade`, which has the lock and has saved the copy."""

ON_REVISION = "peon_on_revision"
"""Attribute of Alembic's configuration: is called after each revision of `upgrade`, with its name."""


class _Step(NamedTuple):
    """A revision that was applied or reverted."""

    revision: str
    seconds: float


class Migration(NamedTuple):
    """What a migration has done.

    Attributes:
        before: The revision before it, `None` before the first.
        after: The revision after it.
        copy: A copy of the SQLite file from before the migration, if there is one.
        steps: The revisions that it applied or reverted, in this order.
        seconds: How long all of it took, including the copy, without the wait for the lock.
    """

    before: str | None
    after: str | None
    copy: Path | None = None
    steps: Sequence[_Step] = ()
    seconds: float = 0.0


def upgrade(engine: Engine) -> None:
    """Migrates a database to the newest revision in one transaction; does nothing if it is there already.

    A populated SQLite file is first copied to a file beside it that is named after the old revision.

    Raises:
        SchemaTooNew: It is at a revision that this version does not know, or at one of another Alembic tree. Nothing
            was written.
        SchemaError: Its revision is in another table than the one that the engine names. Nothing was written.
        MigrationFailed: A step failed. The database is as it was before; the message names the copy.
        StoreUnavailable: It cannot be written, or another migration holds the lock for longer than `busy_timeout`.
    """
    revision = checked_revision(engine, complete=True)
    if revision == revisions()[-1]:
        return
    _migrate(engine, revision, revisions()[-1])


def migrate(engine: Engine, target: str | None) -> Migration:
    """Upgrades or downgrades a database to a revision in one transaction. See `upgrade` for the copy and errors.

    Args:
        target: One of `revisions`; `None` to remove all tables.
    """
    return _migrate(engine, checked_revision(engine, complete=False), target)


def _migrate(engine: Engine, revision: str | None, target: str | None) -> Migration:
    """Migrates a database, which was seen at `revision`, and logs it."""
    if revision == target:
        return Migration(revision, target)
    facts = {"database": database_name(engine), "revision": revision or "base", "head": target or "base"}
    # Nothing is logged while the locks are held: a handler may use a database.
    report(MIGRATIONS, logging.INFO, "migrating %(database)s from %(revision)s to %(head)s", **facts)
    with telemetry_of(engine).operation("migrate", from_revision=facts["revision"], to_revision=facts["head"]):
        done = _migrate_under_lock(engine, target)
    if done.before == target:
        message = "%(database)s was migrated to %(head)s by another process or thread"
        report(MIGRATIONS, logging.INFO, message, **facts)
        return done
    verb, where = ("reverted", "of") if is_downgrade(done.before, target) else ("applied", "to")
    for step in done.steps:
        message = f"{verb} revision %(revision)s {where} %(database)s in %(seconds).3f s"
        report(MIGRATIONS, logging.INFO, message, database=facts["database"], **step._asdict())
    message = "migrated %(database)s from %(revision)s to %(head)s in %(seconds).3f s" + (
        "; a copy from before is %(copy)s" if done.copy else ""
    )
    copy = None if done.copy is None else str(done.copy)
    report(MIGRATIONS, logging.INFO, message, **facts, seconds=done.seconds, copy=copy)
    return done


def _migrate_under_lock(engine: Engine, target: str | None) -> Migration:
    # Imported here, because that takes longer than opening an up-to-date database.
    from alembic import command
    from alembic.config import Config

    steps: list[_Step] = []
    with _migration_lock.held(), DriverErrors(engine), migration_transaction(engine) as connection:
        began = time.monotonic()
        revision = known_revision(connection)
        if revision == target:
            return Migration(revision, target)  # another process or thread has done it while this one waited
        copy = backend_of(engine).save_copy(connection, revision)
        goal = target or "base"
        config = Config(str(alembic_folder() / "alembic.ini"))
        config.attributes[LOCKED_CONNECTION] = connection
        config.attributes[ON_REVISION] = _adding_to(steps)
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
    return Migration(revision, target, copy, steps, time.monotonic() - began)


def _adding_to(steps: list[_Step]) -> Callable[[str], None]:
    before = time.monotonic()

    def add(revision: str) -> None:
        nonlocal before
        before, began = time.monotonic(), before
        steps.append(_Step(revision, before - began))

    return add


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


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """Yields a connection in a transaction that excludes other migrations; commits it at the end.

    On SQLite, foreign keys are not enforced meanwhile, because Alembic changes a table by copying it.
    """
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
