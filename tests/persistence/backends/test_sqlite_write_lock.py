"""Writers of an SQLite file take turns, and do not wait for a writer that gave up or was killed."""

import asyncio
import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import PATIENCE, context, exit_codes, run
from helpers.write_lock_processes import fork_while_another_thread_waits, take_turns, wait_for_turn, writer_waits
from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from peon.persistence import create_engine
from peon.persistence.asynchronous import create_async_engine
from peon.persistence.backends.interface import READ_ONLY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peon.db"


@pytest.fixture
def url(path: Path) -> str:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE turns (number INTEGER PRIMARY KEY, writer INTEGER)"))
    engine.dispose()
    return f"sqlite:///{path}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def until(path: Path, *, waiting: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while writer_waits(path) is not waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def last_turn(writer: int, order: list[int]) -> int:
    return len(order) - order[::-1].index(writer)


def test_a_writer_that_begins_again_at_once_does_not_keep_the_lock(path: Path, url: str) -> None:
    writers, turns = 4, 25
    barrier = context.Barrier(writers)

    assert exit_codes(take_turns, [(barrier, url, writer, turns) for writer in range(writers)]) == [0] * writers

    with closing(sqlite3.connect(path)) as connection:
        order = [writer for (writer,) in connection.execute("SELECT writer FROM turns ORDER BY number")]
    assert sorted(order) == sorted([*range(writers)] * turns)
    while_all_wanted_it = order[: min(last_turn(writer, order) for writer in range(writers))]
    assert max(len([*in_a_row]) for _, in_a_row in groupby(while_all_wanted_it)) < turns / 2
    assert not writer_waits(path)


def test_a_waiting_writer_is_registered_until_its_turn(path: Path, url: str) -> None:
    engine = create_engine(url)
    with locked(path):
        waiter = threading.Thread(target=lambda: engine.begin().__enter__())
        waiter.start()
        until(path, waiting=True)
    waiter.join(PATIENCE)
    assert not writer_waits(path)
    engine.dispose()


def test_writers_do_not_wait_for_a_writer_that_gave_up(path: Path, url: str) -> None:
    engine = create_engine(url, busy_timeout=0.02)
    with locked(path), pytest.raises(OperationalError, match="locked"), engine.begin():
        pass
    assert not writer_waits(path)
    with engine.begin():
        pass
    engine.dispose()


def test_writers_do_not_wait_for_a_writer_that_was_killed(path: Path, url: str) -> None:
    with locked(path):
        waiter = context.Process(target=wait_for_turn, args=(url,))
        waiter.start()
        until(path, waiting=True)
        waiter.kill()
        waiter.join()
        assert not writer_waits(path)


def test_a_forked_child_does_not_inherit_the_registration_of_its_parent(path: Path, url: str) -> None:
    assert run(fork_while_another_thread_waits, url, str(path)) == "no writer waits"


async def begin(engine: AsyncEngine) -> None:
    async with engine.begin():
        pass


def test_writers_do_not_wait_for_a_cancelled_task(path: Path, url: str) -> None:
    async def story() -> None:
        engine = create_async_engine(url)
        with locked(path):
            waiter = asyncio.create_task(begin(engine))
            while not writer_waits(path):
                await asyncio.sleep(0.001)
            waiter.cancel()
            with suppress(asyncio.CancelledError):
                await waiter
            assert not writer_waits(path)
        await begin(engine)
        await engine.dispose()

    asyncio.run(asyncio.wait_for(story(), PATIENCE))


def test_an_event_loop_runs_while_one_of_its_tasks_waits(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    pauses = []

    async def count_pauses(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(seconds)

    async def story() -> None:
        monkeypatch.setattr(asyncio, "sleep", count_pauses)
        engine = create_async_engine(url)
        with locked(path):
            waiter = asyncio.create_task(begin(engine))
            while len(pauses) < 20:
                await sleep(0.001)
                assert not waiter.done()
        await waiter
        await engine.dispose()

    asyncio.run(asyncio.wait_for(story(), PATIENCE))


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_a_lock_of_another_application_on_the_folder_blocks_no_writer(path: Path, url: str, kind: int) -> None:
    engine = create_engine(url)
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, kind)
    for _ in range(3):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO turns (writer) VALUES (1)"))
    os.close(descriptor)
    engine.dispose()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EBADF, errno.EACCES])
@pytest.mark.parametrize("failing", ["os.open", "fcntl.flock"])
def test_writers_work_without_fair_turns_if_folders_cannot_be_locked(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    engine = create_engine(url, busy_timeout=0.02)
    with monkeypatch.context() as patched:
        patched.setattr(failing, fail)
        with locked(path), pytest.raises(OperationalError, match="locked"), engine.begin():
            pass
        with engine.begin():
            pass
    engine.dispose()


def busy_timeout(connection: Any) -> int:
    milliseconds: int = connection.cursor().execute("PRAGMA busy_timeout").fetchone()[0]
    return milliseconds


def test_a_connection_of_the_pool_has_the_busy_timeout_of_the_engine(url: str) -> None:
    engine = create_engine(url, busy_timeout=2.5)
    with closing(engine.raw_connection()) as connection:
        assert busy_timeout(connection) == 2500
    for _ in range(2):
        with engine.connect() as writing:
            with writing.begin():
                used = writing.connection.dbapi_connection
            with writing.execution_options(**{READ_ONLY: True}).begin():
                assert busy_timeout(writing.connection) == 2500
        with closing(engine.raw_connection()) as connection:
            assert connection.dbapi_connection is used
            assert busy_timeout(connection) == 2500
    engine.dispose()


def test_a_detached_connection_can_be_closed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.detach()
        connection.execute(text("INSERT INTO turns (writer) VALUES (1)"))
        connection.commit()
    assert not caplog.records
    engine.dispose()


def test_without_a_write_ahead_log_a_commit_waits_for_readers(path: Path) -> None:
    # This virtual file system of SQLite has no shared memory.
    engine = create_engine(URL.create("sqlite", database=f"file:{path}", query={"vfs": "unix-dotfile", "uri": "true"}))
    for _ in range(2):
        with engine.begin() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
            assert busy_timeout(connection.connection) == 10_000
    engine.dispose()
