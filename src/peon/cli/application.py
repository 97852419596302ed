"""Puts the groups of commands together."""

from typing import Annotated

import typer

from peon import __version__
from peon.cli import (
    backup,
    doctor,
    events,
    maintenance,
    migrate,
    projections,
    redaction,
    settings,
    status,
    subscriptions,
    threads,
    transfer,
)

application = typer.Typer(
    name="peon",
    help="Looks at and looks after a database of Peon.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"peon {__version__}")
        raise typer.Exit


@application.callback()
def peon(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Looks at and looks after a database of Peon."""


for group in (
    status,
    doctor,
    events,
    threads,
    subscriptions,
    settings,
    migrate,
    projections,
    backup,
    transfer,
    maintenance,
    redaction,
):
    group.add_to(application)
