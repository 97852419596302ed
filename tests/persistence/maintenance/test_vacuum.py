"""A vacuum gives the space of merged chunks back."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.streamed_text import NO_AGE, SCENE, deltas, whole
from sqlalchemy import URL

from peon.persistence import Database, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase

pytestmark = pytest.mark.postgresql_too("VACUUM")

Opener = Callable[..., Database]

TEXT = "0123456789" * 200


def compacted(database: Database) -> Database:
    database.events.append_all([*SCENE, *whole(TEXT)])
    assert database.maintenance.compact(older_than=NO_AGE).removed == len(TEXT) - 1
    return database


@pytest.mark.parametrize("full", [False, True])
def test_space_is_given_back(open_empty: Opener, full: bool) -> None:
    database = compacted(open_empty("peon"))
    reports: list[tuple[int, int]] = []

    planned = database.maintenance.vacuum(full=full, dry_run=True)
    done = database.maintenance.vacuum(full=full, progress=lambda *report: reports.append(report))

    assert planned.after == planned.before == done.before
    assert done.possible
    if database.engine.dialect.name == "sqlite":  # a server keeps deleted rows that any of its transactions may see
        assert done.after < done.before / 2
        assert done.free > done.before / 2
    assert reports[-1][0] == reports[-1][1] > 0
    assert database.projections.verify() == []
    assert list(deltas(database).values()) == [TEXT]


def test_the_file_becomes_smaller_without_a_full_vacuum(migrated_sqlite_url: URL) -> None:
    path = Path(str(migrated_sqlite_url.database))
    with Database.open(url=migrated_sqlite_url) as database:
        done = compacted(database).maintenance.vacuum()

        assert path.stat().st_size == done.after < 400_000


def test_a_file_of_an_earlier_version_needs_a_full_vacuum_once(migrated_sqlite_url: URL) -> None:
    path = Path(str(migrated_sqlite_url.database))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    with Database.open(url=migrated_sqlite_url) as database:
        done = compacted(database).maintenance.vacuum()
        assert (done.possible, done.after) == (False, done.before)

        assert database.maintenance.vacuum(full=True).after < done.before
        assert database.maintenance.vacuum().possible


def test_a_full_vacuum_is_refused_if_the_disk_has_not_enough_room(
    migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10))
    with Database.open(url=migrated_sqlite_url) as database:
        compacted(database)
        with pytest.raises(StoreUnavailable, match=r"needs [\d,]+ bytes, and the disk has 10: free some"):
            database.maintenance.vacuum(full=True)
        assert database.maintenance.vacuum().possible


def test_maintenance_in_an_event_loop(migrated_lasting_url: URL) -> None:
    async def maintain() -> list[Any]:
        async with await AsyncDatabase.open(url=migrated_lasting_url) as database:
            await database.events.append_all([*SCENE, *whole(TEXT)])
            done = await database.maintenance.compact(older_than=NO_AGE)
            small = await database.maintenance.vacuum()
            smallest = await database.maintenance.vacuum(full=True)
            assert small.possible
            assert smallest.possible
            assert repr(database.maintenance).startswith("<AsyncMaintenance of ")
            return [done.removed, await database.maintenance.removed_events(), await database.maintenance.lost_events()]

    removed, (gap,), lost = asyncio.run(maintain())

    assert (removed, gap[:3], lost) == (len(TEXT) - 1, (5, len(TEXT) + 3, "compaction"), [])
