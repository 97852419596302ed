"""`peon settings`: the application's settings."""

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from peon.cli.commands import DryRun, Yes, command
from peon.cli.errors import CommandFailed
from peon.cli.invocation import Invocation
from peon.cli.text import printable, table_of

settings = typer.Typer(help="Lists, reads and changes the application's settings.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The key of the setting.", show_default=False)]


class Settings(BaseModel):
    """All settings, by key."""

    settings: dict[str, Any]


class Setting(BaseModel):
    """One setting."""

    key: str
    value: Any


class ChangedSetting(BaseModel):
    """What has happened to a setting."""

    key: str
    changed: bool


def add_to(application: typer.Typer) -> None:
    application.add_typer(settings, name="settings")


@command(settings, "list", document=Settings)
def list_settings(invocation: Invocation) -> None:
    """Lists all settings."""
    with invocation.reading() as database:
        found = database.settings.all()
    table = table_of("key", "value")
    for key, value in found.items():
        table.add_row(printable(key), printable(json.dumps(value, ensure_ascii=False)))
    invocation.show(Settings(settings=found), table)


@command(settings, "get", document=Setting)
def get_setting(invocation: Invocation, key: Key) -> None:
    """Prints the JSON value of a setting."""
    missing = object()
    with invocation.reading() as database:
        value = database.settings.get(key, missing)
    if value is missing:
        raise CommandFailed(f"there is no setting {key!r}: run  peon settings list{invocation.address}")
    invocation.show(Setting(key=key, value=value), printable(json.dumps(value, ensure_ascii=False)))


@command(settings, "set", document=ChangedSetting)
def set_setting(
    invocation: Invocation,
    key: Key,
    value: Annotated[
        str, typer.Argument(metavar="JSON", help="The value as JSON, such as '\"dark\"', 12 or '{\"a\": 1}'.")
    ],
) -> None:
    """Stores a JSON value under a key."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(f"the value is not JSON ({error}); text needs quotes: '\"{value}\"'") from None
    with invocation.writing() as database:
        database.settings.set(key, parsed)
    invocation.show(ChangedSetting(key=key, changed=True), f"{printable(key)} is set.")


@command(settings, "delete", document=ChangedSetting)
def delete_setting(invocation: Invocation, key: Key, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Removes a setting."""
    with invocation.reading() as database:
        is_set = key in database.settings.all()
    if not is_set:
        raise CommandFailed(f"there is no setting {key!r}: run  peon settings list{invocation.address}")
    if dry_run:
        invocation.show(ChangedSetting(key=key, changed=False), f"{printable(key)} would be removed.")
        return
    invocation.confirm(f"Remove the setting {printable(key)}?", yes=yes)
    with invocation.writing() as database:
        removed = database.settings.delete(key)
    invocation.show(ChangedSetting(key=key, changed=removed), f"{printable(key)} was removed.")
