"""Damaged files raise errors of this package that name the remedy."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.damaged_files import pages_of
from helpers.unavailable_databases import fill, renamed, sqlite, unavailable

from peon import UndecodableEvent
from peon.persistence import (
    Database,
    PersistenceError,
    StoreUnavailable,
)


def overwrite(path: Path, first: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(content)


def overwrite_each(path: Path, places: range) -> None:
    for place in places:
        overwrite(path, place, random.Random(place).randbytes(512))


DAMAGES: dict[str, Callable[[Path, int], object]] = {
    "random bytes in the middle": lambda path, size: overwrite(path, size // 2, random.Random(3).randbytes(65_536)),
    "zeros in the middle": lambda path, size: overwrite(path, size // 2, bytes(65_536)),
    "random bytes all over": lambda path, size: overwrite_each(path, range(8_192, size, 20_000)),
    "the second half cut off": lambda path, size: os.truncate(path, size // 2),
    "all but the header cut off": lambda path, _: os.truncate(path, 4_096),
    "all but part of the header cut off": lambda path, _: os.truncate(path, 1_000),
    "the tables' definitions": lambda path, _: overwrite(path, 100, random.Random(4).randbytes(3_900)),
    # SQLite quotes this text in its message, which the driver then cannot decode.
    "a table's definition": lambda path, _: path.write_bytes(
        path.read_bytes().replace(b"CREATE TABLE events", b"CREATE \xff\xff\xff\xff\xff events")
    ),
    "the tables' roots": lambda path, _: overwrite(path, 4_096, random.Random(5).randbytes(4_096 * 10)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_raises_errors_of_this_package(tmp_path: Path, damage: Callable[[Path, int], object]) -> None:
    path = tmp_path / "peon.db"
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        before = database.events.append_all([renamed(f"{n} " + "x" * (n % 7) * 1_000) for n in range(1_000)])
    damage(path, path.stat().st_size)
    errors: list[PersistenceError] = []

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except PersistenceError as error:  # anything else fails the test
            errors.append(error)
            return None

    if opened := attempt(lambda: Database.open(url=sqlite(path), maintain_projections=False)):
        with opened as database:
            replayed = attempt(database.events.replay_all)
            assert replayed is None, "damage was not noticed"
            attempt(lambda: database.events.replay_all(undecodable=UndecodableEvent))
            attempt(lambda: list(database.events.stream(after=500, event_types=["ProjectRenamed"])))
            attempt(database.events.last_sequence)
            attempt(lambda: database.events.append_all([renamed()]))
            attempt(lambda: database.events.append_all([renamed("x" * 10_000)] * 100))
            # Either the rows before the damage can still be read, or no row can.
            assert attempt(lambda: list(database.events.stream(limit=1))) in (before[:1], None)
    assert errors
    for error in errors:
        assert error.__cause__ is not None or not isinstance(error, StoreUnavailable)
        if isinstance(error, StoreUnavailable):
            assert str(error).startswith(f"{sqlite(path)}: ")


def test_the_error_for_a_damaged_file_names_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    fill(sqlite(path), 3_000)
    overwrite(path, path.stat().st_size // 8_192 * 4_096, bytes(8_192))  # two whole pages

    with (
        Database.open(url=sqlite(path), maintain_projections=False) as database,
        unavailable(sqlite(path), "damaged: restore a backup"),
    ):
        database.events.replay_all()


def test_rows_that_damage_turned_into_nulls_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path), 1_000)
    # Not the beginning of the page, so that SQLite still finds rows in it: all their columns are NULL.
    leaves = pages_of(path, "events")
    overwrite(path, (leaves[len(leaves) // 2] - 1) * 4_096 + 1_000, bytes(3_096))

    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert list(database.events.stream(limit=100)) == before[:100]
        with pytest.raises(PersistenceError):
            database.events.replay_all()
        with suppress(PersistenceError):
            database.events.replay_all(undecodable=UndecodableEvent)
