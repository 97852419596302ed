"""`peon status`: how a database is doing, for people and for health probes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from peon.cli.commands import command
from peon.cli.errors import ExitCode
from peon.cli.invocation import Invocation
from peon.cli.status_checks import Limits, checks_of
from peon.cli.status_document import Check, Status
from peon.cli.status_measurements import measured

if TYPE_CHECKING:
    from rich.console import RenderableType


def add_to(application: typer.Typer) -> None:
    command(application, "status", document=Status)(show_status)


def show_status(
    invocation: Invocation,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the limits, for a health probe; exit code 1 if one is exceeded.")
    ] = False,
    max_lag: Annotated[
        int, typer.Option("--max-lag", metavar="EVENTS", min=0, help="The limit for projections and subscriptions.")
    ] = 10_000,
    max_wal: Annotated[
        int, typer.Option("--max-wal", metavar="MB", min=0, help="The limit for the -wal file of SQLite.")
    ] = 256,
    max_problems: Annotated[
        int, typer.Option("--max-problems", metavar="EVENTS", min=0, help="The limit for events that do not apply.")
    ] = 0,
    sizes: Annotated[
        bool | None,
        typer.Option(
            "--sizes/--no-sizes",
            help="Measure tables and indexes. By default, unless that means to read an SQLite file above 500 MB.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Shows the log, its storage, projections, subscriptions, and what is waiting.

    With --check, the answer takes the same short time for a log of any length.
    """
    with invocation.reading_engine() as engine:
        status = measured(engine, briefly=check, sizes=sizes)
    if not check:
        invocation.show(status, *_for_people(invocation, status))
        return
    checks = checks_of(status, Limits(lag=max_lag, wal_megabytes=max_wal, problems=max_problems))
    invocation.show(status.model_copy(update={"checks": checks}), *_for_people(invocation, checks))
    if not all(each.ok for each in checks):
        raise typer.Exit(ExitCode.FAILED)


def _for_people(invocation: Invocation, found: Status | list[Check]) -> Iterable["RenderableType"]:
    """Returns tables, without loading Rich where nobody sees them."""
    if invocation.json:
        return ()
    from peon.cli.status_tables import checks_for_people, status_for_people

    return checks_for_people(found) if isinstance(found, list) else status_for_people(found)
