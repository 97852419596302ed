"""Files and folders that the process has no permission to read or write."""

from contextlib import closing
from pathlib import Path

import pytest
from helpers.unavailable_databases import (
    assert_sound,
    assert_works,
    files,
    fill,
    in_child,
    read_and_fail_to_append,
    renamed,
    sqlite,
    unavailable,
)

from peon.persistence import (
    Database,
)


@pytest.mark.parametrize("below", ["peon.db", "data/peon.db"])
def test_a_read_only_folder_is_refused(folder: Path, below: str) -> None:
    folder.chmod(0o555)

    def attempt() -> None:
        with unavailable(sqlite(folder / below), "in a folder that this user may write"):
            Database.open(url=sqlite(folder / below), maintain_projections=False)

    in_child(attempt, as_nobody=True)
    assert files(folder) == {}


def test_an_empty_file_in_a_read_only_folder_is_refused(folder: Path) -> None:
    path = folder / "peon.db"
    path.touch()
    path.chmod(0o666)
    folder.chmod(0o555)

    def attempt() -> None:
        with unavailable(sqlite(path), "folder"):
            Database.open(url=sqlite(path), maintain_projections=False)

    in_child(attempt, as_nobody=True)
    assert files(folder) == {"peon.db": b""}


@pytest.mark.parametrize(
    ("of_file", "of_folder"), [(0o444, 0o777), (0o444, 0o555), (0o666, 0o555)], ids=["file", "both", "folder"]
)
def test_appends_to_a_read_only_database_fail(folder: Path, of_file: int, of_folder: int) -> None:
    path = folder / "data" / "peon.db"
    before = fill(sqlite(path))
    path.chmod(of_file)
    path.parent.chmod(of_folder)
    content = path.read_bytes()

    in_child(lambda: read_and_fail_to_append(sqlite(path), before), as_nobody=True)

    assert path.read_bytes() == content
    path.parent.chmod(0o777)
    for file in path.parent.iterdir():
        file.chmod(0o666)

    def append() -> None:
        with Database.open(url=sqlite(path), maintain_projections=False) as database:
            assert_works(database, before)

    in_child(append, as_nobody=True)
    assert_sound(path)


def test_a_store_works_again_when_its_database_is_writable_again(folder: Path) -> None:
    path = folder / "peon.db"
    before = fill(sqlite(path))

    def attempt() -> None:
        with Database.open(url=sqlite(path), maintain_projections=False) as database:
            # Stands for a file system that is remounted read-only, which needs privileges that tests lack.
            with closing(database.engine.raw_connection()) as connection:  # the pool's only one
                connection.cursor().execute("PRAGMA query_only = ON")
            with unavailable(sqlite(path), "it is read-only"):
                database.events.append_all([renamed()])
            with closing(database.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA query_only = OFF")
            assert_works(database, before)

    in_child(attempt)


def test_an_unreadable_database_is_refused(folder: Path) -> None:
    path = folder / "data" / "peon.db"
    before = fill(sqlite(path))
    path.parent.chmod(0o777)
    path.chmod(0)

    def attempt() -> None:
        with unavailable(sqlite(path), "this user may"):
            Database.open(url=sqlite(path), maintain_projections=False)

    in_child(attempt, as_nobody=True)
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o600)
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, before)
