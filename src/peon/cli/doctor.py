"""`peon doctor`: everything that is known to matter, checked."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.text import Text

from peon.cli.commands import command
from peon.cli.errors import ExitCode
from peon.cli.invocation import Invocation
from peon.cli.text import printable, table_of
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.operations.diagnosis import Outcome, diagnose
from peon.persistence.projections import Progress
from peon.persistence.runtime.counts import counted

COLOURS = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.FAILURE: "bold red", Outcome.NOT_CHECKED: "dim"}

OPENING = "opening"


class CheckDone(BaseModel):
    """What a check has found. A check that has found several things is listed several times.

    `advice` says what to do, with the command; it is null if nothing is wrong, or if the reason says it.
    """

    check: str
    outcome: Outcome
    reason: str
    advice: str | None


class Examined(BaseModel):
    """The database that was examined, and the number of warnings and failures."""

    database: str
    failures: int
    warnings: int
    checks: list[CheckDone]


def add_to(application: typer.Typer) -> None:
    command(application, "doctor", document=Examined)(doctor)


def doctor(
    invocation: Invocation,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compute the tables from the log again, and compare them.")
    ] = False,
) -> None:
    """Checks the database, and says what is wrong and what to do; changes nothing.

    The exit code is 1 if a check fails, and 3 if the database cannot be opened. A warning does not change it.
    """

    @contextmanager
    def progress(name: str) -> Iterator[Progress]:
        with invocation.progress(f"Checking {name}", unit="done") as report:
            yield report

    with invocation.reading(temporary_tables=deep) as database:
        name = database_name(database.engine)
        done = [
            CheckDone(check=check, outcome=found.outcome, reason=found.reason, advice=found.advice or None)
            for check, found in diagnose(database, deep=deep, options=invocation.address, progress=progress)
        ]
    counts = Counter(each.outcome for each in done)
    table = table_of("check", "", "found")
    for each in done:
        reason = Text("\n").join(printable(part) for part in (each.reason, each.advice) if part)
        table.add_row(each.check, Text(each.outcome, COLOURS[each.outcome]), reason)
    failures, warnings = counts[Outcome.FAILURE], counts[Outcome.WARNING]
    document = Examined(database=name, failures=failures, warnings=warnings, checks=done)
    invocation.show(document, table, Text(f"{counted(failures, 'failure')}, {counted(warnings, 'warning')}"))
    if any(each.check == OPENING and each.outcome is Outcome.FAILURE for each in done):
        raise typer.Exit(ExitCode.UNAVAILABLE)
    if failures:
        raise typer.Exit(ExitCode.FAILED)
