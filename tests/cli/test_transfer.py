"""`peon export`, `peon import` and `peon copy`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.migrated_databases import address
from helpers.peon_command import Peon
from sqlalchemy import URL, text

from peon import Database
from peon.cli import transfer
from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import copy_database

PROJECT = UUID(int=1)


@pytest.fixture
def url(migrated_sqlite_url: URL) -> URL:
    """The address of a database with two events and a setting."""
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all(
            [
                ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table"),
                ProjectRenamed(project_id=PROJECT, name="Gezeiten"),
            ],
            command_id=UUID(int=2),
        )
        database.settings.set("theme", "dark")
    return migrated_sqlite_url


@pytest.fixture
def empty(migrated_file: Path, tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Creates a database without events."""

    def create(name: str) -> tuple[str, str]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "peon.db").write_bytes(migrated_file.read_bytes())
        with Database.open(url=f"sqlite:///{folder}/peon.db") as database:
            database.events.renew_log_id()
        return "--data-dir", str(folder)

    return create


def test_a_log_is_exported_and_imported(
    peon: Peon, url: URL, empty: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl.gz"
    at = ("--url", address(url))
    done = peon("export", file, *at, "--json")
    assert (done.code, done.err) == (0, "")
    assert {**done.document, "sha256": ""} == {
        "database": at[1],
        "file": str(file),
        "events": 2,
        "commands": 1,
        "last_sequence": 2,
        "sha256": "",
    }
    assert peon("export", file, *at).code == 1  # it exists, and there is no answer
    assert peon("export", file, *at, "--yes").out == "Exported 2 events and 1 receipt of commands.\n"

    target = empty("target")
    done = peon("import", file, *target)
    assert (done.code, done.err, done.out) == (0, "", "Imported 2 events and 1 receipt of commands.\n")
    with Database.open(url=f"sqlite:///{target[1]}/peon.db", migrate=False) as imported:
        assert imported.read_model.projects()[0].name == "Gezeiten"
        assert imported.projections.position() == 2
    refused = peon("import", file, *target)
    assert (refused.code, "is not empty" in refused.err, "peon import --append" in refused.err) == (2, True, True)
    appended = peon("import", file, *target, "--append", "--json").document
    assert (appended["events"], appended["skipped"], appended["last_sequence"]) == (0, 2, 2)


def test_a_cut_file_fails_with_1(peon: Peon, url: URL, empty: Callable[[str], tuple[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    peon("export", file, "--url", address(url))
    file.write_bytes(file.read_bytes()[:-20])
    done = peon("import", file, *empty("target"))
    assert (done.code, done.out) == (1, "")
    assert f"peon: {file} was cut or altered after it was exported" in done.err


def test_a_log_is_exported_and_imported_through_pipes(
    peon: Peon, url: URL, empty: Callable[[str], tuple[str, str]]
) -> None:
    at, target = ("--url", address(url)), empty("target")
    done = peon("export", "-", *at)
    assert done.err == "Exported 2 events and 1 receipt of commands.\n"
    assert json.loads(done.out.splitlines()[0])["events"] == 2
    assert peon("import", "-", *target, input=done.out).code == 0


def test_an_export_ends_when_its_reader_closes_the_pipe(url: URL) -> None:
    with Database.open(url=url) as database:  # more than a pipe holds
        database.events.append_all([ProjectRenamed(project_id=PROJECT, name="x" * 1_000)] * 200)
    command = [sys.executable, "-m", "peon", "export", "-", "--url", address(url)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith('{"format":"peon-log"')
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_file_is_moved_to_postgresql(peon: Peon, url: URL, postgresql_url: URL) -> None:
    at = ("--url", address(url), "--to", address(postgresql_url))
    first, second = peon("copy", *at), peon("copy", *at)

    assert (first.code, first.err) == (0, "")
    assert first.out == (
        "Copied 2 events, the last with sequence 2; every row was compared, and the projections are verified.\n"
    )
    with Database.open(url=url) as source, Database.open(url=postgresql_url, migrate=False) as target:
        assert target.read_model.projects() == source.read_model.projects()
        assert target.settings.get("theme") == "dark"
        assert target.projections.verify() == []
    assert (second.code, second.out) == (2, "")
    assert "is not empty: it holds 2 rows of events, 1 row of settings" in second.err
    assert len(second.err.splitlines()) == 1


def test_an_event_that_cannot_be_applied_is_counted(peon: Peon, url: URL, tmp_path: Path) -> None:
    with Database.open(url=url) as source, source.engine.begin() as connection:
        connection.execute(text("INSERT INTO events (event_type, payload, stored_at) VALUES ('Old', '{', 'x')"))
    done = peon("copy", "--url", address(url), "--to", f"sqlite:///{tmp_path}/other/peon.db", "--json")
    assert (done.code, done.err) == (0, "")
    assert {**done.document, "source": "", "target": ""} == {
        "source": "",
        "target": "",
        "events": 3,
        "last_sequence": 3,
        "problems": 1,
        "differences": 0,
    }


def test_a_missing_source_creates_nothing(peon: Peon, tmp_path: Path) -> None:
    done = peon("copy", "--data-dir", tmp_path / "missing", "--to", f"sqlite:///{tmp_path}/target.db")
    assert (done.code, done.out, len(done.err.splitlines())) == (3, "", 1)
    assert [*tmp_path.iterdir()] == []


def test_a_source_that_changes_during_the_copy_is_an_error(
    peon: Peon, url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_then_append(*arguments: Any) -> int:
        count = copy_database(*arguments)
        with Database.open(url=url) as source:
            source.events.append_all([ProjectRenamed(project_id=PROJECT, name="new")])
        return count

    monkeypatch.setattr(transfer, "copy_database", copy_then_append)
    done = peon("copy", "--url", address(url), "--to", f"sqlite:///{tmp_path}/other.db")
    assert done.code == 1
    assert "ends with event 2" in done.err
    assert "now ends with event 3: stop all writers" in done.err


def test_a_copy_that_is_not_equal_fails(peon: Peon, url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catch_up = transfer._catch_up

    def catch_up_then_damage(invocation: Any, database: Database, done: str) -> int:
        problems = catch_up(invocation, database, done)
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE projection_projects SET name = 'wrong'"))
        return problems

    monkeypatch.setattr(transfer, "_catch_up", catch_up_then_damage)
    done = peon("copy", "--url", address(url), "--to", f"sqlite:///{tmp_path}/other.db")
    assert done.code == 1
    assert "the projections differ from the log in 1 value: run  peon verify" in done.out
