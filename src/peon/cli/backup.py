"""`peon backup` and `peon restore`."""

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.table import Table

from peon.cli.commands import DryRun, Yes, command
from peon.cli.invocation import Invocation
from peon.cli.text import printable
from peon.persistence import RestoreReport, ResumedSubscription, back_up_database, create_engine, restore_database
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import engine_arguments
from peon.persistence.migrations import revisions
from peon.persistence.runtime.counts import counted


class BackedUp(BaseModel):
    """The backup that was written, and the older ones that were removed. `bytes` is its size."""

    database: str
    file: Path
    events: int
    last_sequence: int
    revision: str | None
    bytes: int
    removed: list[Path]


class Resumed(BaseModel):
    """A durable subscription after a restore.

    `sequence` is its position in the backup. `previous` is its position in the database that was replaced: up to that
    event, its consumer has processed events already. It is null if it is not known.
    """

    name: str
    sequence: int
    previous: int | None


class Restored(BaseModel):
    """What a restore has done, or would do.

    `kept` is the file or the schema where the replaced database is; null if there was none. `previous_last_sequence` is
    the last sequence of the replaced log; null if there was none, or if it cannot be read.
    """

    database: str
    file: Path
    events: int
    last_sequence: int
    previous_last_sequence: int | None
    revision: str
    kept: str | None
    log_id: UUID | None
    subscriptions: list[Resumed]
    done: bool


def add_to(application: typer.Typer) -> None:
    command(application, "backup", document=BackedUp)(backup)
    command(application, "restore", document=Restored)(restore)


def backup(
    invocation: Invocation,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Where the backup is written. .gz or .zst compresses it.", show_default=False
        ),
    ],
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", min=1, metavar="N", help="Add the time to the name, and keep only the newest N of such backups."
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Backs up the database while applications run, and checks the backup.

    On PostgreSQL, pg_dump writes the schema that holds the log.
    """
    if keep is None and file.exists():
        invocation.confirm(f"Replace {file}?", yes=yes)
    with (
        invocation.reading() as database,
        invocation.progress("Backing up", unit="bytes", when_interrupted="No backup was written.") as report,
    ):
        done = back_up_database(database.engine, file, replace=keep is None, keep=keep, progress=report)
        name = database_name(database.engine)
    size = done.file.stat().st_size
    document = BackedUp(database=name, bytes=size, **{**done._asdict(), "removed": list(done.removed)})
    last = f", the last with sequence {done.last_sequence:,}" if done.events else ""
    lines = [f"{done.file}: {counted(done.events, 'event')}{last}; {size:,} bytes, checked."]
    invocation.show_sentences(document, *lines, *(f"Removed {path}" for path in done.removed))


def restore(
    invocation: Invocation,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A backup that peon backup has made.", show_default=False)
    ],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Puts a backup in the place of the database, and keeps what it replaces.

    Stop the applications before. The log gets a new identity, so clients that remember positions begin again.
    """
    invocation.when_interrupted = "The database is as it was before."
    engine = create_engine(**engine_arguments(invocation.config, None, None, echo=False))
    name = database_name(engine)
    try:
        if dry_run or not yes:
            planned = restore_database(engine, file, dry_run=True)
            if dry_run:
                _show(invocation, planned, name, file, done=False)
                return
            if planned.kept is not None:
                invocation.confirm(_question(planned, name), yes=yes)
        _show(invocation, restore_database(engine, file, replace=True), name, file, done=True)
    finally:
        engine.dispose()


def _question(planned: RestoreReport, name: str) -> str:
    last = planned.previous_last_sequence
    log = "" if last is None else f", whose log ends with event {last:,},"
    return f"Replace {name}{log} by a backup that ends with event {planned.last_sequence:,}?"


def _show(invocation: Invocation, report: RestoreReport, name: str, file: Path, *, done: bool) -> None:
    document = Restored(
        database=name,
        file=file,
        done=done,
        **{**report._asdict(), "subscriptions": [Resumed(**each._asdict()) for each in report.subscriptions]},
    )
    verb = "Restored" if done else "Would restore"
    lines = [f"{verb} {counted(report.events, 'event')}, the last with sequence {report.last_sequence:,}, from {file}."]
    if report.kept is not None:
        lines.append(f"The replaced database {'is' if done else 'would be'} kept as {report.kept}")
    last = report.previous_last_sequence
    if last is not None and last > report.last_sequence:
        lines.append(
            f"Its events {report.last_sequence + 1:,} to {last:,} are not in the backup, and new events get these "
            "sequences."
        )
    elif report.kept is not None and last is None:
        lines.append("It cannot be read, so it is not known which of its events the backup lacks.")
    if report.log_id is not None:
        lines.append(f"The log has the new identity {report.log_id}: clients that remember positions begin again.")
    if report.revision != revisions()[-1]:
        lines.append(f"It is at revision {report.revision}: run  peon migrate{invocation.address}")
    invocation.show_sentences(document, *lines)
    if report.subscriptions and not invocation.json:
        invocation.print(_table_of(report))


def _table_of(report: RestoreReport) -> Table:
    table = Table("durable subscription", "position", "before", "its consumer")
    for each in report.subscriptions:
        before = "unknown" if each.previous is None else f"{each.previous:,}"
        table.add_row(printable(each.name), f"{each.sequence:,}", before, _consequence(each, report.last_sequence))
    return table


def _consequence(subscription: ResumedSubscription, last: int) -> str:
    start, previous = subscription.sequence + 1, subscription.previous
    if previous is None:
        return f"continues with event {start:,}; it may have processed events from there on before"
    again, lost = min(previous, last), previous > last
    parts = [f"receives events {start:,} to {again:,} again"] if again >= start else []
    if lost:
        parts.append(f"has processed events {max(start, last + 1):,} to {previous:,}, which are lost")
    return "; ".join(parts) or f"continues with event {start:,}"
