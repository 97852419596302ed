"""What a fork waits for, so that its child finds no lock held by a thread that it does not have."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import Event
from pathlib import Path

import pytest
from helpers import interrupted_forks
from helpers.fork_processes import CHILD_SECONDS, exit_code_of_child, fork_under_readers, renamed
from helpers.processes import PATIENCE, run
from sqlalchemy import URL, Engine, text

from peon.persistence import Database, create_engine
from peon.persistence.runtime import forking


@pytest.fixture
def engine(sqlite_url: URL) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    yield engine
    engine.dispose()


class Call:
    """A call of SQLite, in a thread of its own, that ends when it is told to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._entered, self._may_end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._entered.wait(PATIENCE)

    def _run(self) -> None:
        with closing(self._engine.raw_connection()) as connection:  # which begins no transaction
            connection.driver_connection.create_function("inside", 0, self._inside)  # type: ignore[union-attr]
            with closing(connection.cursor()) as cursor:
                cursor.execute("SELECT inside()")

    def _inside(self) -> int:
        self._entered.set()
        return self._may_end.wait(PATIENCE)

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()


def fork_child_that_connects(url: URL) -> int:
    def connect() -> None:
        engine = create_engine(url)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    return exit_code_of_child(connect)


def test_a_fork_waits_for_a_call_of_another_thread(engine: Engine) -> None:
    call = Call(engine)
    codes: list[int] = []
    forking_thread = threading.Thread(target=lambda: codes.append(fork_child_that_connects(engine.url)))
    forking_thread.start()
    forking_thread.join(0.3)  # a fork and its child take about 0.05 seconds
    assert codes == []
    call.end()
    forking_thread.join()
    assert codes == [0]


def test_a_fork_does_not_wait_forever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "FORK_WAIT_SECONDS", 0.2)
    call = Call(engine)
    start = time.monotonic()
    assert exit_code_of_child(lambda: None) == 0
    assert 0.2 <= time.monotonic() - start < PATIENCE / 2
    call.end()
    with engine.connect() as connection:  # no lock is left over
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.fixture
def waits_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a fork that wrongly waits take longer than any fork on a busy machine."""
    monkeypatch.setattr(forking, "FORK_WAIT_SECONDS", PATIENCE)


@pytest.mark.usefixtures("waits_forever")
def test_a_fork_from_within_a_call_does_not_wait_for_itself(engine: Engine) -> None:
    start = time.monotonic()
    with closing(engine.raw_connection()) as connection:
        connection.driver_connection.create_function("fork", 0, lambda: exit_code_of_child(lambda: None))  # type: ignore[union-attr]
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT fork()")
            assert cursor.fetchall() == [(0,)]
    assert time.monotonic() - start < forking.FORK_WAIT_SECONDS


@pytest.mark.usefixtures("waits_forever")
def test_threads_that_fork_at_the_same_time_do_not_wait_for_each_other(engine: Engine) -> None:
    codes: list[int] = []
    start = time.monotonic()
    threads = [threading.Thread(target=lambda: codes.append(fork_child_that_connects(engine.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 4
    assert time.monotonic() - start < forking.FORK_WAIT_SECONDS


def test_connections_work_after_a_fork(engine: Engine) -> None:
    with engine.connect() as connection:
        assert exit_code_of_child(lambda: None) == 0
        other = threading.Thread(target=lambda: connection.execute(text("SELECT 1")).all())
        other.start()
        other.join(PATIENCE)
        assert not other.is_alive()


@pytest.mark.slow
@pytest.mark.alone
def test_no_child_of_a_process_whose_threads_read_hangs(tmp_path: Path) -> None:
    # Before forks waited, about one child in twenty hung in sqlite3.connect.
    assert run(fork_under_readers, f"sqlite:///{tmp_path / 'peon.db'}", 200) == [0] * 200


def test_a_child_outlives_a_parent_that_closed_the_database_before_the_fork(migrated_sqlite_url: URL) -> None:
    appended, parent_closed = Event(), Event()

    def append_before_and_after() -> None:
        database.events.append_all([renamed("child")])
        appended.set()
        assert parent_closed.wait(CHILD_SECONDS)
        database.events.append_all([renamed("child")])

    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        database.events.append_all([renamed("parent")])
        database.close()
        with ThreadPoolExecutor(1) as thread:
            code = thread.submit(exit_code_of_child, append_before_and_after)
            assert appended.wait(PATIENCE)
            database.events.append_all([renamed("parent")])
            database.close()  # as the last one, if it knows nothing of the child
            parent_closed.set()
            assert code.result() == 0
        assert database.events.last_sequence() == 4


def test_an_interrupt_during_a_fork_leaves_no_lock_held() -> None:
    program = [sys.executable, "-u", interrupted_forks.__file__]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
