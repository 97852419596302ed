"""Helpers of the tests of databases that cannot be used."""

import os
import sqlite3
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from helpers.secret import assert_secret_is_kept
from sqlalchemy import URL

from peon.config import AppConfig, DatabaseConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import (
    Database,
    StoredEvent,
    StoreUnavailable,
)

NOBODY = 65_534
IMPATIENT = AppConfig(database=DatabaseConfig(busy_timeout=0.3))
Stored = list[StoredEvent[OrchestrationEvent]]


def renamed(name: str = "tide-table") -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


def sqlite(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def files(folder: Path) -> dict[str, bytes | None]:
    """Returns the contents of a folder and its subfolders: bytes for files, `None` for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def unavailable(url: URL, saying: str = "") -> Iterator[pytest.ExceptionInfo[StoreUnavailable]]:
    """Expects `StoreUnavailable` with the database's name, what to do, and the driver's error as its cause."""
    with pytest.raises(StoreUnavailable) as caught:
        yield caught
    assert str(caught.value).startswith(url.render_as_string(hide_password=True) + ": ")
    assert saying in str(caught.value)
    assert caught.value.__cause__ is not None
    assert_secret_is_kept(caught.value)


def assert_works(database: Database, before: Stored) -> None:
    """Checks that nothing was stored since `before`, and that the next append gets the next sequence."""
    assert database.events.replay_all() == before
    (stored,) = database.events.append_all([renamed()])
    assert stored.sequence == len(before) + 1
    assert database.events.replay_all() == [*before, stored]


def assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def in_child(action: Callable[[], None], *, as_nobody: bool = False) -> None:
    """Runs the action in a child process, which may give up its rights and limits; root could write anything."""
    if as_nobody and os.geteuid() == 0:
        # Import everything first: the user `nobody` may not be allowed to read the modules.
        Database.open(url="sqlite://", maintain_projections=False).close()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking while the runner of the tests has threads
        child = os.fork()
    if not child:
        try:
            if as_nobody and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            os.write(writer, b"done")
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as report:
        told = report.read()
    assert os.waitpid(child, 0)[1] == 0
    assert told == "done", told


def fill(url: URL, count: int = 3) -> Stored:
    """Creates a database with this many events and without a -wal file."""
    with Database.open(url=url, maintain_projections=False) as database:
        return database.events.append_all([renamed(f"name {n}") for n in range(count)])


def read_and_fail_to_append(url: URL, expected: Stored) -> None:
    """Checks that appends fail; reads fail as well if SQLite cannot create the -shm file beside the database."""
    try:
        database = Database.open(url=url, maintain_projections=False)
    except StoreUnavailable:
        with unavailable(url, "this user"):
            Database.open(url=url, maintain_projections=False)
        return
    with database:
        for _ in range(2):
            assert database.events.replay_all() == expected
            with unavailable(url, "it is read-only: give this user write permission for the file and its folder"):
                database.events.append_all([renamed()])
        assert database.events.last_sequence() == len(expected)
