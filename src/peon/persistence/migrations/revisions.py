"""Which revisions there are, and which one a database has; unknown revisions are refused."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from sqlalchemy import ColumnClause, Connection, Engine, column, inspect, select, table
from sqlalchemy.exc import DBAPIError

from peon.config import DEFAULT_VERSION_TABLE
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_missing
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import PersistenceError, SchemaError, SchemaOutOfDate, SchemaTooNew
from peon.persistence.schema import events


@cache
def alembic_folder() -> Path:
    """Returns the folder of `alembic.ini`: in an installed package, or the root of a checkout."""
    package = Path(__file__).parents[2]
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


def descriptions() -> dict[str, str]:
    """Returns what each revision does, oldest first."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(Config(str(alembic_folder() / "alembic.ini")))
    found = {script.revision: script.doc for script in scripts.walk_revisions()}
    return {revision: found[revision] for revision in revisions()}


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


def checked_revision(engine: Engine, *, complete: bool) -> str | None:
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
    revision = checked_revision(engine, complete=complete)
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
