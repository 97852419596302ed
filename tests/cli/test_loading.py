"""What the command loads: importing takes most of the time of a health probe, so only what is used may be imported."""

import subprocess
import sys

import pytest
import typer
from helpers.peon_command import run_peon
from sqlalchemy import URL
from typer.main import get_command

from peon.cli.application import application, loaded_application

NOT_FOR_HELP = ("sqlalchemy", "pydantic_settings", "rich", "peon.persistence", "peon.orchestration", "peon.config")

NOT_FOR_PROBES = (
    "alembic",
    "asyncpg",
    "psycopg",
    "rich",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
    "peon.orchestration",
    "peon.persistence.asynchronous",
    "peon.persistence.backends.postgresql",
    "peon.persistence.database",
    "peon.persistence.event_store",
    "peon.persistence.projections",
)
"""Modules that `peon status --check` on an SQLite file must not load."""

PROGRAM = """
import sys
from peon.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def loaded_by(*arguments: str) -> list[str]:
    """Returns the modules that a process of the command has loaded, after it has ended without a failure."""
    line = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stderr.split()


def test_a_health_probe_loads_only_what_it_measures_with(migrated_sqlite_url: URL) -> None:
    loaded = loaded_by("status", "--check", "--json", "--url", str(migrated_sqlite_url))

    assert "peon.cli.status" in loaded
    assert [name for name in NOT_FOR_PROBES if name in loaded] == []
    assert [name for name in loaded if name.startswith("peon.cli.thread")] == []


def test_help_loads_no_database() -> None:
    loaded = loaded_by("--help")

    assert [name for name in NOT_FOR_HELP if name in loaded] == []


def test_help_says_of_each_command_what_the_command_itself_says() -> None:
    assert overview(application) == overview(loaded_application())


def overview(group: typer.Typer) -> str:
    command = get_command(group)
    context = command.context_class(command, info_name="peon", max_content_width=200)
    lines = command.get_help(context).partition("Commands:")[2].splitlines()
    # Typer puts groups after commands.
    return "\n".join(sorted(line.removesuffix(".") for line in lines))


@pytest.mark.parametrize("arguments", [("statsu",), ("migrate", "curent"), ("settings", "st")])
def test_an_unknown_command_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = run_peon(*arguments)

    assert done.code == 2
    assert "No such command" in done.err


def test_completion_knows_commands_and_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(monkeypatch, "peon set") == ["settings"]
    assert completed(monkeypatch, "peon migrate h") == ["history"]
    assert completed(monkeypatch, "peon status --ch") == ["--check"]


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    words = line.split()
    monkeypatch.setenv("_PEON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    done = subprocess.run([sys.executable, "-m", "peon"], capture_output=True, text=True, check=True)
    return done.stdout.split()
