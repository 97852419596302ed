"""The backups that docs/how-to/back-up-and-restore.md recommends, of a file that another process writes to."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.log_processes import append_until
from helpers.migrated_databases import address, file_of
from helpers.processes import PATIENCE, context
from sqlalchemy import URL

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, back_up_database, create_engine

EVENTS = 40_000
"""About 20 MB, so that the writer commits several times during a backup."""

FINISHES_WITHIN_SECONDS = 20


def vacuum_into(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("VACUUM INTO ?", [str(target)])


def peon(source: Path, target: Path) -> None:
    engine = create_engine(f"sqlite:///{source}")
    back_up_database(engine, target)
    engine.dispose()


def backup_in_one_step(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as connection, closing(sqlite3.connect(target)) as copy:
        connection.backup(copy)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("back_up", [peon, vacuum_into, backup_in_one_step])
def test_a_backup_under_load_finishes_and_is_whole(
    migrated_sqlite_url: URL, tmp_path: Path, back_up: Callable[[Path, Path], None]
) -> None:
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        for _ in range(EVENTS // 10_000):
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="x" * 300)] * 10_000)
    stop, appended = context.Event(), context.Value("q", 0)
    writer = context.Process(target=append_until, args=(stop, appended, address(migrated_sqlite_url)))
    writer.start()
    try:
        wait_for_more(appended, 0)
        target = tmp_path / "backup.db"
        before, start = appended.value, time.monotonic()
        back_up(file_of(migrated_sqlite_url), target)
        duration, during = time.monotonic() - start, appended.value - before
        wait_for_more(appended, appended.value)  # the backup has not stopped the writer
    finally:
        stop.set()
        writer.join(PATIENCE)
        writer.kill()
    assert writer.exitcode == 0
    assert duration < FINISHES_WITHIN_SECONDS
    assert during > 0
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Database.open(url=URL.create("sqlite", database=str(target)), maintain_projections=False) as restored:
        last = restored.events.last_sequence()
        assert EVENTS + before <= last <= EVENTS + appended.value
        assert sum(1 for _ in restored.events.stream()) == last
        (stored,) = restored.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="x")])
        assert stored.sequence == last + 1


def wait_for_more(appended: Any, than: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while appended.value <= than:
        assert time.monotonic() < deadline
        time.sleep(0.01)
