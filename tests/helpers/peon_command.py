"""Runs the command `peon` in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from peon.cli.application import application


@dataclass(frozen=True)
class Done:
    """What a command has printed, and how it has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


Peon = Callable[..., Done]


def run_peon(*arguments: object, input: str | None = None) -> Done:  # noqa: A002
    environment = {"COLUMNS": None}  # pytest-xdist sets it
    result = CliRunner().invoke(application, [str(each) for each in arguments], input=input, env=environment)
    return Done(result.exit_code, result.stdout, result.stderr)
