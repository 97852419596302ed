"""Migrates a database to the newest revision, also when many processes start at once; refuses unknown revisions."""

import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, TextIO

from sqlalchemy import URL, ColumnClause, Connection, Engine, Table, column, inspect, select, table
from sqlalchemy.exc import DBAPIError

from peon.config import DEFAULT_VERSION_TABLE, AppConfig
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_missing
from peon.persistence.backends.driver_errors import DriverErrors, database_name, explain
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import MigrationFailed, PersistenceError, SchemaError, SchemaOutOfDate, SchemaTooNew
from peon.persistence.runtime.forking import reset_after_fork
from peon.persistence.runtime.log_records import MIGRATIONS, report
from peon.persistence.runtime.telemetry import telemetry_of
from peon.persistence.schema import events, metadata

LOCKED_CONNECTION = "peon_locked_connection"
"""Attribute of Alembic's configuration: the connection of `upgrade`, which has the lock and has saved the copy."""

ON_REVISION = "peon_on_revision"
"""Attribute of Alembic's configuration: is called after each revision of `upgrade`, with its name."""


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


def exclude_peon_tables(
    name: str | None,
    type_: str,
    parent_names: Mapping[str, str | None],  # noqa: ARG001 - Alembic fixes the arguments
    *,
    version_table: str | None = None,
    tables: Collection[Table] = (),
) -> bool:
    """Keeps Peon's tables out of the autogenerate of your own Alembic tree: pass it as `include_name`.

    It excludes them in every schema, because an autogenerate that proposes to drop a log does more harm than one that
    overlooks a table. To pass further arguments, use `functools.partial`.

    Args:
        name: See Alembic's `include_name`.
        type_: See Alembic's `include_name`.
        parent_names: See Alembic's `include_name`.
        version_table: The table with the revision of Peon's tables; by default `database.version_table` as `AppConfig`
            reads it from environment and file.
        tables: The tables of your own projections, which Peon creates, too.

    Returns:
        Whether Alembic compares what has this name. For Peon's tables, and so for their indexes and columns, `False`.

    Raises:
        ConfigError: `version_table` is not given, and the configuration is wrong.
    """
    if type_ != "table":
        return True
    if name in metadata.tables or any(name == table.name for table in tables):
        return False
    return name != (AppConfig().database.version_table if version_table is None else version_table)


def current_revision(connection: Connection) -> str | None:
    """Returns what the version table holds, `None` if it is missing or empty.

    Raises:
        SchemaError: The table has more than one row.
    """
    name = version_table_of(connection)
    # Only in this schema: another schema of the search path may have another log, or another application's table.
    schema = backend_of(connection).schema_for_new_tables(connection)
    if not connection.dialect.has_table(connection, name, schema=schema):
        return None
    found = _revisions_in(connection, name, schema)
    if len(found) > 1:
        raise _schema_error(
            connection,
            f"the table {name} of {database_name(connection.engine)} has several rows ({', '.join(found)}): "
            "delete all but the one of the revision that its tables have"
            + ("" if {*found} <= {*revisions()} else ", and give each Alembic tree a version table of its own"),
            revision=None,
        )
    return found[0] if found else None


def known_revision(connection: Connection) -> str | None:
    """Returns the revision of Peon's tables, `None` before the first.

    Raises:
        SchemaTooNew: This version has no script for the revision: a newer version has migrated the database, or the
            revision is one of another Alembic tree.
        SchemaError: The version table has several rows, or the revision is in another table.
    """
    revision = current_revision(connection)
    if revision == revisions()[-1]:
        return revision
    schema = backend_of(connection).schema_for_new_tables(connection)
    has_log = connection.dialect.has_table(connection, events.name, schema=schema)
    if revision in (revisions() if has_log else [None]):
        return revision
    elsewhere = _table_with_revision(connection, schema) if has_log else None
    if revision is None and elsewhere is None:
        return None
    name, database = version_table_of(connection), database_name(connection.engine)
    kind: type[SchemaError] = SchemaTooNew
    if revision and has_log and re.fullmatch(r"\d{3}_\w+", revision):  # as Peon's revisions are named
        message = (
            f"{database} is at revision {revision}, which this version of peon does not know (its newest is "
            f"{revisions()[-1]}): install a newer version of peon, or open another database"
        )
        if elsewhere:
            message += f". If {name} is of another Alembic tree, set database.version_table to {elsewhere}"
    elif elsewhere:
        kind = SchemaError
        message = (
            f"Peon's revision is in the table {elsewhere} of {database}, not in {name}: set database.version_table to "
            f"{elsewhere}"
        )
        if revision is None:
            quote = connection.dialect.identifier_preparer.quote
            message += f", or run  ALTER TABLE {quote(elsewhere)} RENAME TO {quote(name)}"
    else:
        message = (
            f"the table {name} of {database} holds the revision {revision} of another Alembic tree: give Peon a "
            "version table of its own with database.version_table, or open another database"
        )
    raise _schema_error(connection, message, revision=revision, kind=kind)


def _revisions_in(connection: Connection, name: str, schema: str | None) -> Sequence[str]:
    number: ColumnClause[str] = column("version_num")
    return connection.scalars(select(number).select_from(table(name, schema=schema)).order_by(number)).all()


def _table_with_revision(connection: Connection, schema: str | None) -> str | None:
    """Returns the table that holds a known revision, as only a version table does."""
    for (_, name), columns in inspect(connection).get_multi_columns(schema=schema).items():
        if [found["name"] for found in columns] == ["version_num"]:
            # The table of another application may be closed to this role.
            with suppress(DBAPIError), backend_of(connection).statements_that_may_fail(connection):
                if {*_revisions_in(connection, name, schema)} & {*revisions()}:
                    return name
    return None


def _schema_error(
    connection: Connection, message: str, *, revision: str | None, kind: type[SchemaError] = SchemaError
) -> SchemaError:
    return kind(message, database=database_name(connection.engine), revision=revision, head=revisions()[-1])


def _known_revision(engine: Engine, *, complete: bool) -> str | None:
    """Returns the revision of the database, `None` before the first.

    Args:
        complete: Also check that a database at the newest revision has all parts.

    Raises:
        SchemaTooNew: See `known_revision`.
        SchemaError: See `known_revision`; or the database lacks a trigger or a row that appends need.
        StoreUnavailable: It cannot be read.
    """
    with DriverErrors(engine):
        if is_missing(engine.url):
            return None
        with backend_of(engine).consistent_reads(engine).connect() as connection:
            revision = known_revision(connection)
            is_checked = complete and revision == revisions()[-1]
            missing = backend_of(engine).missing_parts(connection) if is_checked else {}
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
    arguments = [f"url={database_name(engine)}"]
    if (name := version_table_of(engine)) != DEFAULT_VERSION_TABLE:
        arguments.append(f"version_table={name}")
    options = " ".join(f"-x {shlex.quote(argument)}" for argument in arguments)
    raise SchemaOutOfDate(
        f"{database_name(engine)} is at revision {revision or 'base'}; this version of peon needs {revisions()[-1]}. "
        f"Run:  alembic -c {ini} {options} upgrade head",
        database=database_name(engine),
        revision=revision,
        head=revisions()[-1],
    )


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
    revision = _known_revision(engine, complete=True)
    if revision == revisions()[-1]:
        return
    _migrate(engine, revision, revisions()[-1])


def migrate(engine: Engine, target: str | None) -> Migration:
    """Upgrades or downgrades a database to a revision in one transaction. See `upgrade` for the copy and errors.

    Args:
        target: One of `revisions`; `None` to remove all tables.
    """
    return _migrate(engine, _known_revision(engine, complete=False), target)


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


def descriptions() -> dict[str, str]:
    """Returns what each revision does, oldest first."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(Config(str(alembic_folder() / "alembic.ini")))
    found = {script.revision: script.doc for script in scripts.walk_revisions()}
    return {revision: found[revision] for revision in revisions()}


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
