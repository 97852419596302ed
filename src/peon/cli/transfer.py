"""`peon export`, `peon import` and `peon copy`: the log as a file, and a database in another place."""

import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from pydantic import BaseModel

from peon.cli.commands import Yes, command
from peon.cli.errors import CommandFailed, ExitCode
from peon.cli.invocation import Invocation
from peon.persistence import Database, PersistenceError, copy_database, export_log, import_log
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import projection_problems

STREAM = Path("-")


class Exported(BaseModel):
    """The log that was exported. `sha256` is the checksum in its last line."""

    database: str
    file: Path
    events: int
    commands: int
    last_sequence: int
    sha256: str


class Imported(BaseModel):
    """The log that was imported.

    `skipped` counts the events that were there already. `problems` counts the events of the log that the projections
    cannot apply.
    """

    database: str
    file: Path
    events: int
    skipped: int
    commands: int
    last_sequence: int
    problems: int


class Copied(BaseModel):
    """The database that was copied.

    `problems` counts the events that the projections cannot apply. `differences` counts the values in which the
    projections of the copy differ from its log: 0 proves that they are equal.
    """

    source: str
    target: str
    events: int
    last_sequence: int
    problems: int
    differences: int


def add_to(application: typer.Typer) -> None:
    command(application, "export", document=Exported)(export)
    command(application, "import", document=Imported)(import_)
    command(application, "copy", document=Copied)(copy)


def export(
    invocation: Invocation,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Where the log is written; - is standard output. .gz or .zst compresses it.",
            show_default=False,
        ),
    ],
    yes: Yes = False,
) -> None:
    """Writes the log as JSON Lines, with a header and a checksum. Applications may run."""
    to_output = file == STREAM
    if not to_output and file.exists():
        invocation.confirm(f"Replace {file}?", yes=yes)
    target: Path | BinaryIO = sys.stdout.buffer if to_output else file
    left = "The output is cut; peon import refuses it." if to_output else "No file was written."
    with invocation.reading() as database, invocation.progress("Exporting", when_interrupted=left) as report:
        try:
            done = export_log(database.engine, target, replace=True, progress=report)
        except PersistenceError as error:
            if isinstance(error.__cause__, BrokenPipeError):  # as in  peon export - | head
                raise error.__cause__ from None
            raise
        name = database_name(database.engine)
    sentence = f"Exported {counted(done.events, 'event')} and {counted(done.commands, 'receipt')} of commands."
    if to_output:
        invocation.note(sentence)  # the log is on standard output
    else:
        invocation.show_sentences(Exported(database=name, file=file, **done._asdict()), sentence)


def import_(
    invocation: Invocation,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A log that peon export has written; - is standard input.", show_default=False
        ),
    ],
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="Store the events after those of the log, as new ones; skip those that are there already."
        ),
    ] = False,
) -> None:
    """Stores an exported log, after checking all of it, and brings the projections up to date.

    Into an empty log, events keep their sequences and times.
    """
    left = "Nothing was stored."
    if append:
        left = "What was stored before stays; the same command continues, and skips it."
    with invocation.writing() as database:
        source: Path | BinaryIO = sys.stdin.buffer if file == STREAM else file
        with invocation.progress("Importing", when_interrupted=left) as report:
            done = import_log(database.engine, source, append=append, progress=report)
        problems = _catch_up(invocation, database, "The log is imported")
        document = Imported(database=database_name(database.engine), file=file, problems=problems, **done._asdict())
    skipped = f" {counted(done.skipped, 'event was', 'events were')} there already." if append else ""
    refused = f" The projections cannot apply {counted(problems, 'event')}." if problems else ""
    sentence = f"Imported {counted(done.events, 'event')} and {counted(done.commands, 'receipt')} of commands."
    invocation.show_sentences(document, f"{sentence}{skipped}{refused}")


def copy(
    invocation: Invocation,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            help="The new database, as a URL of SQLAlchemy: empty, or one that does not exist yet.",
            show_default=False,
        ),
    ],
) -> None:
    """Copies the database into an empty one, for example from SQLite to PostgreSQL, and proves that both are equal.

    Stop the applications before: what they store afterwards is not copied. The exit code is 1 if the copy is not equal.
    """
    with invocation.reading() as source, Database.open(url=to, maintain_projections=False) as target:
        with invocation.progress("Copying", unit="rows", when_interrupted="Nothing was copied.") as report:
            events = copy_database(source, target, report)
        last = target.events.last_sequence()
        problems = _catch_up(invocation, target, "The log is copied")
        with invocation.progress("Verifying", when_interrupted="The log is copied, but not verified.") as report:
            found = target.projections.verify(report)
        newest = source.events.last_sequence()
        names = database_name(source.engine), database_name(target.engine)
    # Events that cannot be decoded or applied are problems in both databases.
    differences = sum(difference.table != projection_problems.name for difference in found)
    document = Copied(
        source=names[0], target=names[1], events=events, last_sequence=last, problems=problems, differences=differences
    )
    if newest != last:
        raise CommandFailed(
            f"the copy ends with event {last:,}, but {names[0]} now ends with event {newest:,}: stop all writers, and "
            "copy into a new database"
        )
    end = f"Copied {counted(events, 'event')}, the last with sequence {last:,}; every row was compared"
    if differences:
        invocation.show_sentences(
            document,
            f"{end}, but the projections differ from the log in {counted(differences, 'value')}: run  peon verify",
        )
        raise typer.Exit(ExitCode.FAILED)
    refused = f", except for {counted(problems, 'event')} that they cannot apply" if problems else ""
    invocation.show_sentences(document, f"{end}, and the projections are verified{refused}.")


def _catch_up(invocation: Invocation, database: Database, done: str) -> int:
    """Brings the projections up to date, and returns the number of events that they cannot apply."""
    left = f"{done}; the next start of the application brings the projections up to date."
    with invocation.progress("Building projections", when_interrupted=left) as report:
        database.projections.catch_up(report)
    return len(database.projections.problems())
