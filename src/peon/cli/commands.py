"""How a function becomes a command: the common options, the explained errors, and its document."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeAlias

import typer
from pydantic import BaseModel

from peon.cli.invocation import Invocation

Parameters = ParamSpec("Parameters")
CommandFunction: TypeAlias = Callable[Concatenate[Invocation, Parameters], None]
Decorator: TypeAlias = Callable[[CommandFunction[Parameters]], CommandFunction[Parameters]]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]

COMMON_OPTIONS: dict[str, Any] = {
    "url": Annotated[
        str | None,
        typer.Option(
            "--url", metavar="URL", help="The database, as a URL of SQLAlchemy instead of the configured one."
        ),
    ],
    "data_dir": Annotated[
        Path | None, typer.Option("--data-dir", metavar="FOLDER", help="The folder of the database peon.db.")
    ],
    "json": Annotated[bool, typer.Option("--json", help="Print one JSON document.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")],
}


def command(
    group: typer.Typer, name: str, *, document: type[BaseModel] | None = None
) -> Callable[
    [Callable[Concatenate[Invocation, Parameters], None]], Callable[Concatenate[Invocation, Parameters], None]
]:
    """Makes the decorated function a command of `group`, with the common options and explained errors.

    The function takes an `Invocation` and then the options and arguments of its own, as Typer declares them. The
    options of its own have to be given by name.

    Args:
        group: Where the command is added.
        name: How it is called.
        document: What the command shows with `--json`; `None` if it has no `--json`.
    """

    def add(function: CommandFunction[Parameters]) -> CommandFunction[Parameters]:
        group.command(name)(_with_common_options(function, document))
        return function

    return add


def default_command(
    group: typer.Typer, *, document: type[BaseModel] | None = None
) -> Callable[
    [Callable[Concatenate[Invocation, Parameters], None]], Callable[Concatenate[Invocation, Parameters], None]
]:
    """Makes the decorated function what a group does without a command. See `command`."""

    def add(function: CommandFunction[Parameters]) -> CommandFunction[Parameters]:
        group.callback(invoke_without_command=True)(_with_common_options(function, document, of_group=True))
        return function

    return add


def _with_common_options(
    function: Callable[..., None], document: type[BaseModel] | None, *, of_group: bool = False
) -> Callable[..., None]:
    common = {name: kind for name, kind in COMMON_OPTIONS.items() if name != "json" or document is not None}

    @wraps(function)
    def run(context: typer.Context, **arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in common}
        inherited = context.obj if isinstance(context.obj, Invocation) else Invocation()
        invocation = Invocation(**{name: given.get(name) or getattr(inherited, name) for name in COMMON_OPTIONS})
        if invocation.url is not None and invocation.data_dir is not None:
            raise typer.BadParameter("give either --url or --data-dir")
        context.obj = invocation
        if of_group and context.invoked_subcommand is not None:
            return
        with invocation.explained_errors():
            function(invocation, **arguments)

    own = [*inspect.signature(function, eval_str=True).parameters.values()][1:]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=False if name in ("json", "debug") else None
        )
        for name, kind in common.items()
    ]
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [first, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.document = document  # type: ignore[attr-defined]
    return run
