"""Writes the reference page of the command: `python -m peon.cli.reference > docs/reference/command.md`."""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo

from peon.cli.application import loaded_application
from peon.cli.commands import COMMON_OPTIONS
from peon.cli.errors import ExitCode

INTRODUCTION = """\
# The command `peon`

<!-- Written by  python -m peon.cli.reference > docs/reference/command.md  -->

`peon` needs the extra `cli`: `pip install 'peon[cli]'`. `python -m peon` is the same command. How to use it:
[look at a database](../how-to/look-at-a-database.md).

- The database is the [configured](configuration.md) one, or `--url` or `--data-dir` names it.
- Commands that only read change no file. They do not migrate or catch up. They work on an older or newer revision as
  far as its tables allow, on a file that is read-only, and while other processes write.
- An error is one sentence on standard error. `--debug` shows where it was raised.
- A command that takes long shows its progress on standard error, if that is a terminal. Ctrl-C ends it; it then says
  what was done.
- A command that destroys something asks first. `--yes` answers, `--dry-run` says what would happen.
- Colours are off if standard output is not a terminal, or if the environment variable `NO_COLOR` is set.
- `peon --install-completion` completes commands and options in the shell.
"""

NO_JSON = "It has no `--json`."


class _Command(NamedTuple):
    """A command, as Typer has registered it."""

    path: str
    function: Any

    @property
    def parameters(self) -> list["_Parameter"]:
        found = inspect.signature(self.function).parameters.items()
        return [_Parameter.of(name, each) for name, each in found if name != "context"]


class _Parameter(NamedTuple):
    """An option or an argument of a command."""

    name: str
    is_argument: bool
    shown: str
    meaning: str

    @classmethod
    def of(cls, name: str, parameter: inspect.Parameter) -> "_Parameter":
        kind, info = get_args(parameter.annotation)
        if isinstance(info, ArgumentInfo):
            return cls(name, True, f"`{info.metavar}`", str(info.help))
        declared = [each for each in (info.default, *info.param_decls) if isinstance(each, str)]
        names = ", ".join(f"`{name}`" for each in declared for name in each.split("/"))
        takes = "" if kind in (bool, bool | None) else f" `{info.metavar or _choices(kind)}`"
        is_told = parameter.default not in (None, False) and info.show_default is not False
        return cls(name, False, names + takes, f"{info.help}" + (f" Default: {parameter.default}." if is_told else ""))


def page() -> str:
    """Returns the page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Exit codes\n"
    yield "| code | meaning |\n|---|---|"
    for code, meaning in zip(ExitCode, _meanings_of_codes(), strict=True):
        yield f"| {code.value} | {meaning} |"
    commands = [*_commands(loaded_application(), "peon")]
    yield "\n## Options of every command\n"
    common = [each for each in commands[0].parameters if each.name in COMMON_OPTIONS]
    yield from _table("option", [(each.shown, each.meaning) for each in common])
    for command in commands:
        yield from _section(command)


def _meanings_of_codes() -> list[str]:
    described = " ".join(str(ExitCode.__doc__).partition("Attributes:")[2].split())
    return [each.strip() for each in re.split(r"[A-Z]{2,}: ", described)[1:]]


def _commands(group: typer.Typer, path: str) -> Iterator[_Command]:
    for each in group.registered_commands:
        yield _Command(f"{path} {each.name}", each.callback)
    for info in group.registered_groups:
        assert info.typer_instance is not None  # noqa: S101
        inner = f"{path} {info.name}"
        callback = info.typer_instance.registered_callback
        if callback is not None:  # what the group does without a command
            yield _Command(inner, callback.callback)
        yield from _commands(info.typer_instance, inner)


def _section(command: _Command) -> Iterator[str]:
    own = [each for each in command.parameters if each.name not in COMMON_OPTIONS]
    arguments = [each.shown.strip("`") for each in own if each.is_argument]
    yield f"\n## `{' '.join([command.path, *arguments])}`\n"
    yield _one_line(inspect.getdoc(command.function) or "")
    if own:
        yield ""
        yield from _table("argument or option" if arguments else "option", [(e.shown, e.meaning) for e in own])
    yield ""
    document = command.function.document
    yield from _fields(document) if document is not None else [NO_JSON]


def _one_line(text: str) -> str:
    """Returns paragraphs without the line breaks within them."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _choices(kind: Any) -> str:
    (enumeration,) = [each for each in get_args(kind) if each is not type(None)] or [kind]
    return "|".join(str(member.value) for member in enumeration)


def _table(heading: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {heading} | meaning |\n|---|---|"
    for name, meaning in rows:
        yield f"| {name.replace('|', chr(92) + '|')} | {_one_line(meaning)} |"


def _fields(document: type[BaseModel]) -> Iterator[str]:
    """Describes a JSON document, and those within it."""
    schema = document.model_json_schema(mode="serialization")
    yield f"JSON document: {_one_line(schema.get('description', ''))}"
    for title, model in [(None, schema), *schema.get("$defs", {}).items()]:
        if title is not None:
            yield f"\n`{title}`: {_one_line(model.get('description', ''))}"
        yield "\n| field | value |\n|---|---|"
        for name, field in model.get("properties", {}).items():
            yield f"| `{name}` | {_kind(field)} |"


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if field.get("type") == "object":
        return "object"
    return str(field.get("format") or field.get("type") or "any JSON value")


if __name__ == "__main__":
    sys.stdout.write(page())
