"""Puts the groups of commands together, and loads each when it is used."""

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand
from typer.main import get_group

from peon import __version__


class _Described(NamedTuple):
    """What `peon --help` says about a command.

    Attributes:
        module: The module in `peon.cli` that adds it.
        help: The first sentence of its help. A test compares them.
    """

    module: str
    help: str


COMMANDS = {
    "status": _Described("status", "Shows the log, its storage, projections, subscriptions, and what is waiting."),
    "doctor": _Described("doctor", "Checks the database, and says what is wrong and what to do; changes nothing."),
    "events": _Described("events", "Shows stored events, of any application, also those that cannot be decoded."),
    "threads": _Described("threads", "Lists the threads with the newest activity first."),
    "show": _Described(
        "threads", "Shows what has happened in a thread, as its events tell it, beside their sequences."
    ),
    "verify": _Described("projections", "Computes the tables from the log again, and compares them; changes nothing."),
    "rebuild": _Described("projections", "Rebuilds the tables from the log, while applications run."),
    "backup": _Described("backup", "Backs up the database while applications run, and checks the backup."),
    "restore": _Described("backup", "Puts a backup in the place of the database, and keeps what it replaces."),
    "export": _Described("transfer", "Writes the log as JSON Lines, with a header and a checksum."),
    "import": _Described(
        "transfer", "Stores an exported log, after checking all of it, and brings the projections up to date."
    ),
    "copy": _Described(
        "transfer",
        "Copies the database into an empty one, for example from SQLite to PostgreSQL, and proves that both are equal.",
    ),
    "compact": _Described(
        "maintenance", "Merges the chunks of each streamed message whose turn has ended, while applications run."
    ),
    "redact": _Described(
        "redaction",
        "Replaces texts, tool arguments and outputs, paths and errors by a marker, in events and in the read model.",
    ),
    "vacuum": _Described(
        "maintenance", "Removes what deletions have left, and gives the space of removed rows back to the file system."
    ),
    "subscriptions": _Described("subscriptions", "Lists, moves and removes the positions of durable subscriptions."),
    "settings": _Described("settings", "Lists, reads and changes the application's settings."),
    "migrate": _Described(
        "migrate", "Migrates the database to the newest revision, or to another one; creates it if there is none."
    ),
}
"""Every command, in the order of `peon --help`. Without this table, `peon --help` would load all of them."""


def loaded_application() -> typer.Typer:
    """Returns the application with all commands and options loaded, for what looks at them."""
    made = _application()
    for module in dict.fromkeys(described.module for described in COMMANDS.values()):
        import_module(f"peon.cli.{module}").add_to(made)
    return made


def _application() -> typer.Typer:
    made = typer.Typer(
        name="peon",
        help="Looks at and looks after a database of Peon.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(peon)
    return made


def _loaded_from(module: str) -> type[TyperCommand]:
    """Returns the class of a command that a module adds, which gives way to it when it is used."""

    class Placeholder(TyperCommand):
        def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
            group = _application()
            import_module(f"peon.cli.{module}").add_to(group)
            return get_group(group).commands[str(self.name)].make_context(info_name, args, *more, **extra)

    return Placeholder


def _nothing() -> None:
    """The function of a placeholder, which nothing calls."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"peon {__version__}")
        raise typer.Exit


def peon(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Looks at and looks after a database of Peon."""


application = _application()
"""The command, which loads each command when it is used: a health probe has no time for all of them."""

for name, described in COMMANDS.items():
    application.command(name, help=described.help, cls=_loaded_from(described.module))(_nothing)
