"""A full disk loses no acknowledged event, and the store works again once there is space."""

import random
import resource
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from helpers.unavailable_databases import (
    Stored,
    assert_sound,
    assert_works,
    fill,
    in_child,
    read_and_fail_to_append,
    renamed,
    sqlite,
    unavailable,
)

from peon.persistence import (
    Database,
    StoreUnavailable,
)


def append_until_full(database: Database) -> Stored:
    """Returns the events that were acknowledged before the first append failed."""
    sizes = random.Random(0)
    acknowledged: Stored = []
    for _ in range(100_000):
        batch = [renamed("ł" * sizes.choice([1, 100, 5_000])) for _ in range(sizes.choice([1, 1, 2, 30]))]
        try:
            acknowledged += database.events.append_all(batch)
        except StoreUnavailable:
            with unavailable(database.engine.url, "the disk "):
                database.events.append_all(batch)
            return acknowledged
    raise AssertionError("the disk was never full")


def survive_a_full_disk(path: Path, fill_disk: Callable[[], object], free_disk: Callable[[], object]) -> None:
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        before = database.events.append_all([renamed("before")])
        fill_disk()

        acknowledged = append_until_full(database)

        assert database.events.replay_all() == before + acknowledged
        with unavailable(sqlite(path), "the disk "):
            database.events.append_all([renamed("x" * 10_000_000)])
        assert database.events.replay_all() == before + acknowledged
        free_disk()
        assert_sound(path)
        assert_works(database, before + acknowledged)
        after = database.events.replay_all()
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, after)
    assert_sound(path)


def limit_files(size: int) -> None:
    """Limits the size of files; Python ignores the signal, so a larger write fails with an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("size", [150_000, 700_000])
def test_a_limit_of_file_sizes_loses_no_acknowledged_event(tmp_path: Path, size: int) -> None:
    path = tmp_path / "peon.db"

    in_child(lambda: survive_a_full_disk(path, lambda: limit_files(size), lambda: limit_files(resource.RLIM_INFINITY)))


def test_a_limit_of_file_sizes_does_not_stop_readers(tmp_path: Path) -> None:
    before = fill(sqlite(tmp_path / "peon.db"))

    def attempt() -> None:
        limit_files(65_536)  # SQLite's shared memory needs half of that
        with Database.open(url=sqlite(tmp_path / "peon.db"), maintain_projections=False) as database:
            assert database.events.replay_all() == before

    in_child(attempt)


@pytest.mark.parametrize("size", [0, 4_096, 50_000])
def test_a_failed_creation_on_a_full_disk_leaves_no_partial_database(tmp_path: Path, size: int) -> None:
    path = tmp_path / "peon.db"

    def attempt() -> None:
        limit_files(size)
        with unavailable(sqlite(path), "the disk "):
            Database.open(url=sqlite(path), maintain_projections=False)
        limit_files(resource.RLIM_INFINITY)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == []
        with Database.open(url=sqlite(path), maintain_projections=False) as database:
            assert_works(database, [])

    in_child(attempt)


def test_a_full_disk_loses_no_acknowledged_event(small_disk: Path) -> None:
    filler = small_disk / "filler"

    survive_a_full_disk(small_disk / "peon.db", lambda: filler.write_bytes(bytes(1_000_000)), filler.unlink)


def test_opening_on_a_full_disk_is_reported(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))

    with unavailable(sqlite(small_disk / "peon.db"), "the disk "):
        Database.open(url=sqlite(small_disk / "peon.db"), maintain_projections=False)

    filler.unlink()
    with Database.open(url=sqlite(small_disk / "peon.db"), maintain_projections=False) as database:
        assert_works(database, [])


def test_a_disk_that_became_read_only_is_reported(small_disk: Path) -> None:
    before = fill(sqlite(small_disk / "peon.db"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    read_and_fail_to_append(sqlite(small_disk / "peon.db"), before)

    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Database.open(url=sqlite(small_disk / "peon.db"), maintain_projections=False) as database:
        assert_works(database, before)
