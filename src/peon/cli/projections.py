"""`peon verify` and `peon rebuild`: the tables that are derived from the log."""

import importlib
import json
import os
import sys
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text
from sqlalchemy import select

from peon.cli.commands import DryRun, Yes, command
from peon.cli.errors import CommandFailed, ExitCode
from peon.cli.invocation import Invocation
from peon.cli.text import printable, table_of
from peon.persistence import Database, EventCodec, Projection, Projections
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.orchestration.codec import codec_of_database
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import projection_positions, projection_problems

SHOWN_DIFFERENCES = 100
"""Differences of a projection in the table for people; one wrong table may have a million."""

SHOWN_CHARACTERS = 60
"""Characters of a value in the table for people."""

Own = Annotated[
    list[str] | None,
    typer.Option(
        "--projection",
        metavar="MODULE:CLASS",
        help="A projection of the application, beside Peon's own. Can be given several times.",
    ),
]


Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="MODULE:NAME",
        help="The codec of the application, if the log has events of its own: without it, they cannot be applied.",
    ),
]


class DifferenceFound(BaseModel):
    """A value in a table that is not what the log says; null where there is no row, or should be none."""

    table: str
    key: str
    column: str
    expected: Any
    found: Any


class ProjectionVerified(BaseModel):
    """One projection, and its differences from the log; none if its tables are right."""

    projection: str
    differences: list[DifferenceFound]


class Verified(BaseModel):
    """The projections that were compared with the log."""

    database: str
    projections: list[ProjectionVerified]


class ProjectionRebuilt(BaseModel):
    """One projection that was rebuilt, or would be: its version, and the events of the log that it cannot apply."""

    projection: str
    version: int
    problems: int


class Rebuilt(BaseModel):
    """The projections that were rebuilt, or would be."""

    database: str
    events: int
    projections: list[ProjectionRebuilt]
    done: bool


def add_to(application: typer.Typer) -> None:
    command(application, "verify", document=Verified)(verify)
    command(application, "rebuild", document=Rebuilt)(rebuild)


def verify(invocation: Invocation, projection: Own = None, codec: Codec = None) -> None:
    """Computes the tables from the log again, and compares them; changes nothing.

    The exit code is 1 if there are differences.
    """
    used, used_codec = _used(projection), _used_codec(codec)
    with invocation.reading(temporary_tables=True) as database:
        name = database_name(database.engine)
        verified = []
        for each in used:
            with invocation.progress(f"Verifying {each.name}") as report:
                found = Projections(database.engine, [each], used_codec).verify(report)
            differences = [DifferenceFound(**difference._asdict()) for difference in found]
            verified.append(ProjectionVerified(projection=each.name, differences=differences))
        _mention_others(invocation, database, used)
    shown = [line for each in verified for line in _differences_for_people(each)]
    different = {difference.table for each in verified for difference in each.differences}
    if different - {projection_problems.name}:
        shown.append(Text(f"To repair the tables, run  peon rebuild{invocation.address}"))
    if projection_problems.name in different:
        shown.append(
            Text(
                f"Each row of {projection_problems.name} is an event of the log that could not be applied. A rebuild "
                "removes it only if this version can apply the event."
            )
        )
    invocation.show(Verified(database=name, projections=verified), *shown)
    if different:
        raise typer.Exit(ExitCode.FAILED)


def rebuild(
    invocation: Invocation,
    projection: Own = None,
    codec: Codec = None,
    replace_newer: Annotated[
        bool, typer.Option("--replace-newer", help="Also replace what a newer version of the application has built.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Rebuilds the tables from the log, while applications run.

    Readers see the old rows of a projection until all its new ones are there.
    """
    used, used_codec = _used(projection), _used_codec(codec)
    with invocation.writing() as database:
        name = database_name(database.engine)
        if replace_newer and not dry_run:
            invocation.confirm("Replace what a newer version of the application has built?", yes=yes)
        rebuilt = []
        for number, each in enumerate(used):
            projections = Projections(database.engine, [each], used_codec)
            if not dry_run:
                done = ", ".join(earlier.name for earlier in used[:number])
                left = f"{each.name} has its old rows or all its new ones."
                left = f"Rebuilt: {done}. {left}" if done else left
                with invocation.progress(f"Rebuilding {each.name}", when_interrupted=left) as report:
                    projections.rebuild(report, replace_newer=replace_newer)
            problems = len(projections.problems())
            rebuilt.append(ProjectionRebuilt(projection=each.name, version=each.version, problems=problems))
        _mention_others(invocation, database, used)
        end = database.events.last_sequence()
    table = table_of("projection", "version", "problems")
    for row in rebuilt:
        table.add_row(row.projection, str(row.version), f"{row.problems:,}")
    sentence = f"{'This would rebuild' if dry_run else 'Rebuilt'} from {counted(end, 'event')}:"
    invocation.show(Rebuilt(database=name, events=end, projections=rebuilt, done=not dry_run), Text(sentence), table)


def _used(names: list[str] | None) -> list[Projection]:
    return [OrchestrationProjection(), *(_loaded(name) for name in names or [])]


def _loaded(name: str) -> Projection:
    found = _imported("projection", name)
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Projection):
        raise CommandFailed(f"{name} is not a projection: name a subclass of peon.Projection", ExitCode.USAGE)
    return made


def _used_codec(name: str | None) -> EventCodec[Any]:
    try:
        return codec_of_database(None if name is None else _imported("codec", name))
    except (TypeError, ValueError) as error:
        raise CommandFailed(f"{name} cannot be used: {error}", ExitCode.USAGE) from error


def _imported(kind: str, name: str) -> Any:
    """Imports something of the application, also from the working directory."""
    module, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds text
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandFailed(f"the {kind} {name} cannot be imported: {error}", ExitCode.USAGE) from error


def _mention_others(invocation: Invocation, database: Database, used: list[Projection]) -> None:
    """Says which projections of the database were left out, because their code is the application's."""
    with DriverErrors(database.engine), database.read_transaction() as connection:
        known = connection.scalars(select(projection_positions.c.name).order_by(projection_positions.c.name)).all()
    others = sorted(set(known) - {each.name for each in used})
    if others:
        invocation.note(f"peon: left out {', '.join(others)}: name the class with --projection MODULE:CLASS")


def _differences_for_people(verified: ProjectionVerified) -> list[Text | Table]:
    count = len(verified.differences)
    if count == 0:
        return [Text(f"{verified.projection} is equal to what the log says.")]
    table = table_of("table", "key", "column", "expected", "found")
    for each in verified.differences[:SHOWN_DIFFERENCES]:
        table.add_row(each.table, printable(each.key), each.column, _value(each.expected), _value(each.found))
    cut = f", of which {SHOWN_DIFFERENCES} are shown" if count > SHOWN_DIFFERENCES else ""
    return [Text(f"{verified.projection} has {counted(count, 'difference')} from the log{cut}:"), table]


def _value(value: Any) -> Text:
    return printable(value if isinstance(value, str) else json.dumps(value), limit=SHOWN_CHARACTERS)
