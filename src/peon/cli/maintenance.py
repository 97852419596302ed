"""`peon compact` and `peon vacuum`: a database that stays small."""

import re
from datetime import timedelta
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.text import Text

from peon.cli.commands import DryRun, Yes, command
from peon.cli.invocation import Invocation
from peon.cli.text import printable
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.runtime.counts import counted

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Compacted(BaseModel):
    """What a compaction has done, or would do."""

    database: str
    messages: int
    removed: int
    until: int
    held_back_by: list[str]
    done: bool


class Vacuumed(BaseModel):
    """The size of the database before and after, in bytes, and what the vacuum took, or would take."""

    database: str
    before: int
    after: int
    free: int
    needed: int
    seconds: float
    possible: bool
    done: bool


def add_to(application: typer.Typer) -> None:
    command(application, "compact", document=Compacted)(compact)
    command(application, "vacuum", document=Vacuumed)(vacuum)


def compact(
    invocation: Invocation,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="PERIOD", help="Leave younger events as they are: 7d, 12h, 30m.")
    ] = "7d",
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Merges the chunks of each streamed message whose turn has ended, while applications run."""
    age = period(older_than)
    with invocation.writing() as database:
        if not dry_run:
            invocation.confirm("Merge the chunks of messages, which cannot be undone?", yes=yes)
        left = "The log is complete. Another compaction continues."
        with invocation.progress("Compacting", when_interrupted=left) as report:
            found = database.maintenance.compact(older_than=age, progress=report, dry_run=dry_run)
        name = database_name(database.engine)
    would = "This would remove" if dry_run else "Removed"
    shown = [Text(f"{would} {counted(found.removed, 'event')}; the text is in {counted(found.messages, 'event')}.")]
    if not found.removed and not found.held_back_by:
        shown = [Text(f"No finished turn has chunks that are older than {older_than} and not merged.")]
    if found.held_back_by:
        shown.append(printable(f"Not read to the end: {', '.join(found.held_back_by)}.", limit=1_000))
    document = Compacted(
        database=name,
        messages=found.messages,
        removed=found.removed,
        until=found.until,
        held_back_by=list(found.held_back_by),
        done=not dry_run,
    )
    invocation.show(document, *shown)


def vacuum(
    invocation: Invocation,
    full: Annotated[
        bool, typer.Option("--full", help="Write the whole database again, while others wait to write.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Removes what deletions have left, and gives the space of removed rows back to the file system."""
    with invocation.writing() as database:
        name = database_name(database.engine)
        found = database.maintenance.vacuum(full=full, dry_run=True)
        if not found.possible:
            invocation.note(f"This file cannot shrink in steps yet: run  peon vacuum --full{invocation.address}")
        if not dry_run:
            if full:
                invocation.note(f"It needs up to {found.needed:,} bytes on the disk, and about {found.seconds:.0f} s.")
                invocation.confirm("Write the whole database again, while others wait?", yes=yes)
            database.maintenance.clear_deleted()
            with invocation.progress("Vacuuming", unit="steps", when_interrupted="Nothing is lost.") as report:
                found = database.maintenance.vacuum(full=full, progress=report)
    if dry_run:
        sentence = f"It has {found.before:,} bytes; this needs up to {found.needed:,} and about {found.seconds:.0f} s."
    else:
        sentence = f"It had {found.before:,} bytes, and has {found.after:,} now."
    invocation.show(Vacuumed(database=name, **found._asdict(), done=not dry_run), Text(sentence))


def period(text: str) -> timedelta:
    """Returns the period of time that a text such as 7d stands for."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r:.50} is not a period: a number and one of s, m, h, d and w, such as 7d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})
