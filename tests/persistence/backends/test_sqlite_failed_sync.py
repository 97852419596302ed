"""A commit whose sync failed is not visible, but a start after a kill may find it; the error says so."""

from pathlib import Path

import pytest
from helpers.failing_disk import compile_shim, create_switches, run_on_failing_disk
from helpers.slow_proofs import rest_is_slow
from helpers.unavailable_databases import sqlite

from peon.orchestration import ProjectRenamed
from peon.persistence import Database


def names(path: Path) -> list[str]:
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        return [each.event.name for each in database.events.stream() if isinstance(each.event, ProjectRenamed)]


@pytest.mark.parametrize(
    ("kind", "afterwards", "stored"),
    rest_is_slow(
        [
            ("threads", "killed", ["before", "unknown"]),
            ("threads", "closed", ["before"]),
            ("threads", "repeated, then killed", ["before", "unknown"]),
            ("tasks", "killed", ["before", "unknown"]),
        ],
        first=1,
    ),
)
def test_the_outcome_of_a_commit_whose_sync_has_failed_is_unknown(
    tmp_path: Path, kind: str, afterwards: str, stored: list[str]
) -> None:
    shim, switches = compile_shim(tmp_path), create_switches(tmp_path / "switches")
    path = tmp_path / "disk" / "peon.db"

    done = run_on_failing_disk(shim, switches, "helpers.failed_sync_process", switches, path, kind, afterwards)

    message = (
        f"{sqlite(path)}: the disk could not be read or written during the commit, which may have taken place if the "
        "process is killed before the next one: read the log, or repeat the call with the same command_id, which "
        "stores nothing twice"
    )
    assert done.stdout.splitlines() == [message, "visible: 1"], done.stderr
    assert names(path) == stored
