"""`peon migrate`: brings the tables of a database to another revision."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.text import Text
from sqlalchemy import Engine

from peon.cli.commands import DryRun, Yes, command, default_command
from peon.cli.invocation import Invocation
from peon.cli.text import table_of
from peon.persistence import migrations
from peon.persistence.backends.address import is_missing
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.engine import create_engine, engine_arguments

migrate = typer.Typer()

NOTHING_WAS_MIGRATED = "The migration was rolled back: the database is as it was before."


class Migrated(BaseModel):
    """What a migration has done, or would do. A revision that is null comes before the first one."""

    database: str
    before: str | None
    after: str | None
    copy_before: Path | None
    done: bool


class CurrentRevision(BaseModel):
    """The revision of the database, and the newest one that this version of Peon knows."""

    database: str
    revision: str | None
    newest: str


class Revision(BaseModel):
    """A revision of the tables."""

    revision: str
    description: str
    current: bool


class History(BaseModel):
    """All revisions that this version of Peon knows, oldest first."""

    database: str
    revisions: list[Revision]


def add_to(application: typer.Typer) -> None:
    application.add_typer(migrate, name="migrate")


@default_command(migrate, document=Migrated)
def migrate_database(
    invocation: Invocation,
    to: Annotated[
        str, typer.Option("--to", metavar="REVISION", help="A revision, the beginning of its name, head or base.")
    ] = "head",
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL statements, and change nothing.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Migrates the database to the newest revision, or to another one; creates it if there is none.

    A populated SQLite file is first copied to a file beside it. An older revision than the present one removes tables
    and columns, and asks first.
    """
    if sql and invocation.json:
        raise typer.BadParameter("--sql prints statements, not a JSON document: leave out --json")
    target = _revision_named(to)
    before = _revision_of(invocation, known=True)
    engine = _engine(invocation)
    try:
        if sql:
            migrations.write_statements(engine.url, before, target, sys.stdout)
            return
        goes_back = migrations.is_downgrade(before, target)
        done = not dry_run and before != target
        migration = migrations.Migration(before, target, None)
        if done:
            if goes_back:
                invocation.confirm(
                    f"Go back from {before} to {target}, and remove the tables and columns that are newer?"
                    if target
                    else f"Remove all tables of {database_name(engine)}, and the log with them?",
                    yes=yes,
                )
            invocation.when_interrupted = NOTHING_WAS_MIGRATED
            migration = migrations.migrate(engine, target)
        document = Migrated(
            database=database_name(engine),
            before=migration.before,
            after=migration.after,
            copy_before=migration.copy,
            done=done,
        )
    finally:
        engine.dispose()
    invocation.show(document, *_sentences(document, dry_run=dry_run))


def _sentences(migrated: Migrated, *, dry_run: bool) -> list[Text]:
    span = f"{migrated.database} from {migrated.before or 'base'} to {migrated.after or 'base'}"
    if migrated.before == migrated.after:
        return [Text(f"{migrated.database} is at {migrated.after or 'base'} already.")]
    if dry_run:
        return [Text(f"This would migrate {span}.")]
    sentences = [Text(f"Migrated {span}.")]
    if migrated.copy_before is not None:
        sentences.append(Text(f"A copy from before is {migrated.copy_before}."))
    return sentences


@command(migrate, "current", document=CurrentRevision)
def show_current_revision(invocation: Invocation) -> None:
    """Shows the revision of the database."""
    with invocation.reading() as database:
        name = database_name(database.engine)
    document = CurrentRevision(database=name, revision=_revision_of(invocation), newest=migrations.revisions()[-1])
    newest = "the newest" if document.revision == document.newest else f"the newest is {document.newest}"
    invocation.show(document, Text(f"{name} is at {document.revision or 'base'}; {newest}."))


@command(migrate, "history", document=History)
def show_history(invocation: Invocation) -> None:
    """Lists all revisions, and marks that of the database."""
    current = _revision_of(invocation)
    engine = _engine(invocation)
    rows = [
        Revision(revision=revision, description=description, current=revision == current)
        for revision, description in migrations.descriptions().items()
    ]
    table = table_of("revision", "what it does", "")
    for row in rows:
        table.add_row(row.revision, Text(row.description), "current" if row.current else "")
    invocation.show(History(database=database_name(engine), revisions=rows), table)


def _engine(invocation: Invocation) -> Engine:
    return create_engine(**engine_arguments(invocation.config, None, None, echo=False))


def _revision_of(invocation: Invocation, *, known: bool = False) -> str | None:
    """Returns the revision of the database, `None` if there is no database.

    Args:
        known: Raise `SchemaError` if this version of Peon does not know it.
    """
    if is_missing(_engine(invocation).url):
        return None
    with invocation.reading() as database, DriverErrors(database.engine), database.read_transaction() as connection:
        return migrations.known_revision(connection) if known else migrations.current_revision(connection)


def _revision_named(name: str) -> str | None:
    if name == "base":
        return None
    known = migrations.revisions()
    found = known[-1:] if name == "head" else [revision for revision in known if revision.startswith(name)]
    if len(found) != 1:
        raise typer.BadParameter(f"there is no revision {name}; the revisions are base, {', '.join(known)}")
    return found[0]
