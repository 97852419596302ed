"""What all commands have in common."""

import inspect
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from helpers.migrated_databases import address, file_of
from helpers.orchestration_scene import SCENE, THREAD
from helpers.peon_command import Peon
from pydantic import BaseModel
from rich.text import Text
from sqlalchemy import URL
from typer.testing import CliRunner

from peon import Database
from peon.cli import main
from peon.cli.application import loaded_application
from peon.cli.commands import COMMON_OPTIONS, command
from peon.cli.errors import CommandFailed, ExitCode
from peon.cli.invocation import Invocation, console_on
from peon.cli.progress import reported
from peon.cli.text import printable
from peon.config import ConfigError
from peon.persistence import PersistenceError, StoreUnavailable

SECRET = "swordfish"  # noqa: S105

LOADED = loaded_application()


class Nothing(BaseModel):
    """Nothing."""


def raising(error: BaseException, *arguments: str) -> Any:
    group = typer.Typer()
    group.callback()(lambda: None)

    @command(group, "fail", document=Nothing)
    def fail(invocation: Invocation, own: Annotated[int, typer.Option()] = 0) -> None:
        with invocation.progress("Working", when_interrupted="Half of it is done.") as report:
            report(3, 1000)
            raise error

    return CliRunner().invoke(group, ["fail", *arguments])


def commands(group: typer.Typer = LOADED, *path: str) -> Iterator[tuple[str, Any]]:
    for each in group.registered_commands:
        yield " ".join([*path, str(each.name)]), each.callback
    for group_info in group.registered_groups:
        assert group_info.typer_instance is not None
        yield from commands(group_info.typer_instance, *path, str(group_info.name))


def test_every_command_has_the_common_options_and_a_docstring() -> None:
    for name, function in commands():
        parameters = inspect.signature(function).parameters
        missing = [option for option in COMMON_OPTIONS if option not in parameters and option != "json"]
        assert missing == [], name
        assert function.__doc__, name
        assert ("json" in parameters) == (function.document is not None), name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable("x: the disk is full: free some space"), ExitCode.UNAVAILABLE),
        (PersistenceError("the database's URL is of mysql"), ExitCode.USAGE),
        (ConfigError("general.data_dir: must not be empty"), ExitCode.USAGE),
        (CommandFailed("three checks failed"), ExitCode.FAILED),
    ],
)
def test_an_error_is_one_sentence_and_a_code(error: Exception, code: ExitCode) -> None:
    done = raising(error)
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", f"peon: {error}\n")


def test_an_unexpected_error_shows_neither_its_text_nor_a_traceback() -> None:
    done = raising(KeyError(SECRET))
    assert done.exit_code == ExitCode.FAILED
    assert "KeyError" in done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_where_an_error_was_raised() -> None:
    assert "Traceback" in raising(StoreUnavailable("x"), "--debug").stderr


def test_an_interrupt_says_what_was_done() -> None:
    done = raising(KeyboardInterrupt())
    assert done.exit_code == ExitCode.INTERRUPTED
    assert done.stderr == "peon: interrupted after 3 of 1,000 events. Half of it is done.\n"


def test_an_error_that_follows_an_interrupt_is_an_interrupt() -> None:
    error = StoreUnavailable("another command is in progress")
    error.__context__ = KeyboardInterrupt()
    assert raising(error).exit_code == ExitCode.INTERRUPTED


def test_a_closed_pipe_is_no_error() -> None:
    assert raising(BrokenPipeError()).exit_code == ExitCode.FINE


def test_two_addresses_of_a_database_are_wrong_usage(peon: Peon) -> None:
    done = peon("settings", "list", "--url", "sqlite:///x.db", "--data-dir", "x")
    assert done.code == ExitCode.USAGE
    assert "--url or --data-dir" in done.err


def test_an_unknown_command_is_wrong_usage(peon: Peon) -> None:
    assert peon("explode").code == ExitCode.USAGE


def test_the_data_dir_may_be_given_in_three_ways(
    peon: Peon, migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = file_of(migrated_sqlite_url).parent
    assert peon("settings", "list", "--url", address(migrated_sqlite_url)).code == 0
    assert peon("settings", "list", "--data-dir", folder).code == 0
    assert peon("settings", "list").code == ExitCode.UNAVAILABLE

    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", str(folder))
    assert peon("settings", "list").code == 0
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", str(folder / "elsewhere"))
    assert peon("settings", "list", "--data-dir", folder).code == 0


def test_a_missing_database_is_not_created(peon: Peon, tmp_path: Path) -> None:
    for arguments in (
        ("settings", "list"),
        ("settings", "set", "a", "1"),
        ("verify",),
        ("rebuild",),
        ("migrate", "current"),
    ):
        done = peon(*arguments, "--data-dir", tmp_path / "none")
        assert done.code == ExitCode.UNAVAILABLE
        assert "peon migrate" in done.err
    assert not (tmp_path / "none").exists()


def test_a_server_that_does_not_answer_is_not_available_and_no_password_is_shown(peon: Peon) -> None:
    url = f"postgresql+psycopg://postgres:{SECRET}@127.0.0.1:1/x"
    done = peon("settings", "list", "--url", url)
    assert done.code == ExitCode.UNAVAILABLE
    assert SECRET not in done.err
    assert "***" in done.err


def test_the_version_is_shown(peon: Peon) -> None:
    assert re.fullmatch(r"peon \d+\.\d+\.\d+\S*\n", peon("--version").out)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for expected in (True, False):
        console_on(sys.stdout).print(Text("red", style="red"))
        assert ("\x1b[31m" in capsys.readouterr().out) is expected
        monkeypatch.setenv("NO_COLOR", "1")


def test_progress_is_silent_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with reported(console_on(sys.stderr), "Working", "events") as report:
        report(5, 10)
    assert capsys.readouterr().err == ""


def test_progress_has_a_rate_and_an_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with reported(console_on(sys.stderr), "Working", "events") as report:
        report(5, 10)
        time.sleep(0.001)
        report(8, 10)
        time.sleep(0.001)
        report(9, 10)
    shown = capsys.readouterr().err
    assert "9 of 10 events" in shown
    assert re.search(r"events/s", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)


def test_text_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\u202eb\n\tc").plain == "a\\u001b[2J\\u0007\\u202eb\n\tc"
    assert printable("half \ud800").plain == "half \\ud800"
    assert printable("[red]abcdef", limit=6).plain == "[red]…"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_install_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peon.cli.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert capsys.readouterr().err == (
        f"the command peon needs {missing}: install peon with its extra 'cli', "
        "for example with  pip install 'peon[cli]'\n"
    )


def test_a_terminal_without_all_characters_is_no_error(
    migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.settings.set("name", "Åda 🌊")
    shown = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["peon", "settings", "list", "--url", address(migrated_sqlite_url)])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code == 0
    assert b"\\xc5da \\U0001f30a" in shown.getvalue()


def test_it_runs_as_a_module_and_completes_for_a_shell(migrated_sqlite_url: URL) -> None:
    command_line = [sys.executable, "-m", "peon"]
    completing = {"_PEON_COMPLETE": "complete_bash", "COMP_WORDS": "peon sett", "COMP_CWORD": "1"}
    done = subprocess.run(command_line, env={**os.environ, **completing}, capture_output=True, text=True)
    assert done.stdout.split() == ["settings"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_in_a_real_process_ends_it_with_130(migrated_sqlite_url: URL, tmp_path: Path) -> None:
    (tmp_path / "slow_projection_of_a_test.py").write_text(SLOW_PROJECTION)
    arguments = ["--url", address(migrated_sqlite_url), "--projection", "slow_projection_of_a_test:Slow"]
    with subprocess.Popen(
        [sys.executable, "-m", "peon", "rebuild", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the projection says that it is being imported
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert errors == "peon: interrupted. Nothing was changed.\n"


SLOW_PROJECTION = """
import sys, time
print("importing", file=sys.stderr, flush=True)
time.sleep(30)
"""


def test_a_file_that_another_process_holds_is_not_available(
    peon: Peon, migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "0")
    at = ("--url", address(migrated_sqlite_url))
    with closing(sqlite3.connect(file_of(migrated_sqlite_url))) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert peon("status", "--check", *at).code == 0  # readers do not wait for a writer
        holder.rollback()
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN IMMEDIATE")
        done = peon("status", "--check", *at)
    assert done.code == ExitCode.UNAVAILABLE
    assert "locked" in done.err


def test_a_database_of_a_newer_revision_is_read(peon: Peon, migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all(SCENE)
    with closing(sqlite3.connect(file_of(migrated_sqlite_url))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '999_later'")
        connection.execute("ALTER TABLE projection_threads ADD COLUMN later TEXT")
        connection.commit()
    at = ("--url", address(migrated_sqlite_url))
    before = file_of(migrated_sqlite_url).read_bytes()
    for line in ("status", "events", "threads", f"show {THREAD}", "verify", "subscriptions list", "settings list"):
        assert peon(*line.split(), *at).code == 0, line
    assert "999_later" in peon("migrate", "current", *at).out
    for line in ("rebuild", "settings set a 1", "migrate", "migrate --sql"):
        done = peon(*line.split(), *at)
        assert done.code == ExitCode.UNAVAILABLE, line
        assert "install a newer version" in done.err
    assert file_of(migrated_sqlite_url).read_bytes() == before
