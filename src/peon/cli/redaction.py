"""`peon redact`: replaces the content of events."""

import getpass
from contextlib import suppress
from typing import Annotated
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.text import Text

from peon.cli.commands import DryRun, Yes, command
from peon.cli.errors import ExitCode
from peon.cli.invocation import Invocation
from peon.cli.text import printable
from peon.persistence import EventQuery
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.runtime.counts import counted

SHOWN_SEQUENCES = 10
"""Sequences of undecodable events that people are shown; the document has all."""

LEFT = "Nothing is redacted, or everything: run the command again. It then removes what is left in the files, too."


class Redacted(BaseModel):
    """What a redaction has done, or would do.

    `undecodable` are the sequences of events that match and could not be decoded: they are as they were. `remains` is
    what is left to do until the content is in no file of the database.
    """

    database: str
    events: int
    undecodable: list[int]
    until: int
    remains: str | None
    done: bool


def add_to(application: typer.Typer) -> None:
    command(application, "redact", document=Redacted)(redact)


def redact(
    invocation: Invocation,
    thread: Annotated[UUID | None, typer.Option("--thread", metavar="ID", help="The events of a thread.")] = None,
    project: Annotated[
        UUID | None, typer.Option("--project", metavar="ID", help="The events of a project and of all its threads.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who does it, for the record: by default, the user.")
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Replaces texts, tool arguments and outputs, paths and errors by a marker, in events and in the read model."""
    if (thread is None) == (project is None):
        raise typer.BadParameter("give either --thread or --project")
    with invocation.writing() as database:
        maintenance = database.maintenance
        query = EventQuery(thread_id=thread) if project is None else maintenance.of_project(project)
        found = maintenance.redact(query, dry_run=True)
        if found.events and not dry_run:
            invocation.confirm(
                f"Replace the content of {counted(found.events, 'event')}, which cannot be undone?", yes=yes
            )
            with invocation.progress("Redacting", when_interrupted=LEFT) as report:
                found = maintenance.redact(query, by=_user() if by is None else by, progress=report)
        name = database_name(database.engine)
    would = "This would redact" if dry_run else "Redacted"
    shown = [Text(f"{would} {counted(found.events, 'event')}.")]
    if found.undecodable:
        some = ", ".join(map(str, found.undecodable[:SHOWN_SEQUENCES]))
        more = ", …" if len(found.undecodable) > SHOWN_SEQUENCES else ""
        unchanged = "event cannot be decoded, and is as it was", "events cannot be decoded, and are as they were"
        shown.append(Text(f"{counted(len(found.undecodable), *unchanged)}: {some}{more}."))
    if found.remains is not None:
        shown.append(printable(f"What remains: {found.remains}.", limit=1_000))
    if found.events and not dry_run:
        shown.append(Text("Backups, replicas and exported files still have the content."))
    document = Redacted(
        database=name,
        events=found.events,
        undecodable=[*found.undecodable],
        until=found.until,
        remains=found.remains,
        done=not dry_run,
    )
    invocation.show_sentences(document, *(each.plain for each in shown))
    if found.undecodable:
        raise typer.Exit(ExitCode.FAILED)


def _user() -> str:
    with suppress(KeyError, OSError, ImportError):  # a container may have no name for its user
        return getpass.getuser()
    return ""
