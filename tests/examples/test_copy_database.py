"""Runs the example like an operator."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console
from sqlalchemy import URL, text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import Database, PersistenceError
from peon.persistence.copying import copy_database

SCRIPT = Path(__file__).parents[2] / "examples" / "copy_database.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the examples are only in a checkout")


def run(source: URL, target: URL) -> subprocess.CompletedProcess[str]:
    addresses = [url.render_as_string(hide_password=False) for url in (source, target)]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, SCRIPT, *addresses], env=environment, capture_output=True, text=True, check=False
    )


def populate(url: URL) -> None:
    project_id = uuid4()
    with Database.open(url=url) as database:
        database.events.append_all(
            [
                ProjectCreated(project_id=project_id, name="tide-table", path="/tide-table"),
                ProjectRenamed(project_id=project_id, name="Tides"),
            ]
        )
        database.settings.set("theme", "dark")


def test_a_file_is_moved_to_postgresql(sqlite_url: URL, postgresql_url: URL) -> None:
    populate(sqlite_url)

    first = run(sqlite_url, postgresql_url)
    second = run(sqlite_url, postgresql_url)

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.strip() == "Copied 2 events, the last with sequence 2; the projections are verified."
    with Database.open(url=sqlite_url) as source, Database.open(url=postgresql_url, migrate=False) as target:
        assert target.read_model.projects() == source.read_model.projects()
        assert target.settings.get("theme") == "dark"
        assert target.projections.verify() == []
    assert second.returncode == 1
    assert second.stdout.strip() == ""
    assert "is not empty: it holds 2 rows of events, 1 rows of settings" in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_an_event_that_cannot_be_applied_is_counted(sqlite_url: URL, tmp_path: Path) -> None:
    populate(sqlite_url)
    with Database.open(url=sqlite_url) as source, source.engine.begin() as connection:
        connection.execute(text("INSERT INTO events (event_type, payload, stored_at) VALUES ('Old', '{', 'x')"))

    result = run(sqlite_url, URL.create("sqlite", database=str(tmp_path / "other" / "peon.db")))

    assert (result.returncode, result.stderr) == (0, "")
    assert "Copied 3 events, the last with sequence 3; the projections are verified, except for 1 ev" in result.stdout


def test_the_error_for_a_missing_source_is_one_line(sqlite_url: URL, tmp_path: Path) -> None:
    missing = URL.create("sqlite", database=str(tmp_path / "missing.db"))

    result = run(missing, sqlite_url)

    assert result.returncode == 1
    assert "missing.db" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path(str(sqlite_url.database)).exists()


def test_a_source_that_changes_during_the_copy_is_an_error(
    sqlite_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    example = importlib.import_module("copy_database")
    populate(sqlite_url)
    other = URL.create("sqlite", database=str(tmp_path / "other.db"))
    with Database.open(url=sqlite_url) as source, Database.open(url=other) as target:

        def copy_then_append(*arguments: Any) -> int:
            count = copy_database(*arguments)
            source.events.append_all([ProjectCreated(project_id=uuid4(), name="new", path="/new")])
            return count

        monkeypatch.setattr(example, "copy_database", copy_then_append)
        with pytest.raises(PersistenceError, match="ends with event 2, but the source now ends with event 3: stop"):
            example.copied(source, target, Console())
