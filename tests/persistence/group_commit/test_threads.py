"""Many threads share one store, also after errors of every kind."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy.pool
import sqlalchemy.util.queue
from helpers.processes import PATIENCE
from sqlalchemy import URL, event

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import (
    Database,
    EventEncodeError,
    EventStore,
    PersistenceError,
    StoredEvent,
    StoreUnavailable,
)
from peon.persistence.backends.postgresql_log_head import PostgreSQLLogHead
from peon.persistence.backends.sqlite_log_head import SQLiteLogHead
from peon.persistence.group_commit import threads

CONNECTION_POOL = (str(Path(sqlalchemy.pool.__file__).parent), str(sqlalchemy.util.queue.__file__))
"""The folder of SQLAlchemy's connection pool."""


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


def renamed(name: str) -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


@pytest.mark.postgresql_too("the lock that orders appends")
def test_threads_that_append_at_once_lose_and_repeat_nothing(database: Database) -> None:
    threads, batches = 8, 25
    together = threading.Barrier(threads)

    def work(thread: int) -> list[tuple[int, str]]:
        together.wait()
        acknowledged = []
        for number in range(batches):
            stored = database.events.append_all([renamed(f"{thread}-{number}-{part}") for part in "ab"])
            assert stored[1].sequence == stored[0].sequence + 1
            acknowledged += [(s.sequence, s.event.name) for s in stored]
        return acknowledged

    with ThreadPoolExecutor(threads) as pool:
        acknowledged = [pair for future in [pool.submit(work, n) for n in range(threads)] for pair in future.result()]

    log = [(s.sequence, s.event.name) for s in database.events.replay_all()]  # type: ignore[union-attr]
    assert sorted(acknowledged) == log
    assert [sequence for sequence, _ in log] == list(range(1, threads * batches * 2 + 1))


def refuse_encoding(database: Database) -> None:
    with pytest.raises(EventEncodeError):
        database.events.append_all([renamed("x"), "no event"])  # type: ignore[list-item]


def fail_in_the_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails after the rows are written and before they are committed."""
    head = PostgreSQLLogHead if database.engine.dialect.name == "postgresql" else SQLiteLogHead
    written = head.add

    def write_then_fail(*arguments: Any) -> None:
        written(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(head, "add", write_then_fail)
        with pytest.raises(KeyboardInterrupt):
            database.events.append_all([renamed("x")])


def fail_at_commit(database: Database) -> None:
    def refuse(_: object) -> None:
        raise database.engine.dialect.loaded_dbapi.OperationalError("from the test")  # type: ignore[attr-defined]

    event.listen(database.engine, "commit", refuse)
    with pytest.raises(StoreUnavailable):
        database.events.append_all([renamed("x")])
    event.remove(database.engine, "commit", refuse)


def test_after_any_error_the_next_append_works(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Callable[[], None]] = [
        lambda: refuse_encoding(database),
        lambda: fail_in_the_transaction(database, monkeypatch),
        lambda: fail_at_commit(database),
    ]
    acknowledged: list[tuple[int, OrchestrationEvent]] = []
    for failure in [*failures, *reversed(failures)]:
        acknowledged += [(s.sequence, s.event) for s in database.events.append_all([renamed("before")])]
        failure()
        acknowledged += [(s.sequence, s.event) for s in database.events.append_all([renamed("after")])]

    assert [(s.sequence, s.event) for s in database.events.replay_all()] == acknowledged
    assert [sequence for sequence, _ in acknowledged] == list(range(1, 13))


def test_a_failure_of_one_thread_does_not_delay_the_others(database: Database) -> None:
    def work(number: int) -> int:
        if number % 3 == 0:
            refuse_encoding(database)
            return 0
        return len(database.events.append_all([renamed(str(number))]))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(60))) == 40
    assert database.events.last_sequence() == 40


def test_a_logging_handler_that_appends_does_not_deadlock(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    refused: list[PersistenceError] = []

    class Storing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                database.events.append_all([renamed(record.name)])
            except PersistenceError as error:
                refused.append(error)

    handler = Storing()
    engine_logger = logging.getLogger("sqlalchemy.engine.Engine")
    engine_logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, engine_logger.name):
            database.events.close()  # the next connection uses the new log level
            database.events.append_all([renamed("a")])
    finally:
        engine_logger.removeHandler(handler)

    assert refused
    assert all("from inside an append" in str(error) for error in refused)
    assert [s.event.name for s in database.events.replay_all()] == ["a"]  # type: ignore[union-attr]


class HeldCommit:
    """Holds the first commit of a store until the expected number of other appends wait for it."""

    def __init__(self, database: Database, others: int) -> None:
        self.commits = 0
        self._database = database
        self._others = others
        self.held = threading.Event()
        event.listen(database.engine, "commit", self._hold)

    def _hold(self, _: object) -> None:
        self.commits += 1
        if self.commits == 1:
            self.held.set()
            wait_for(lambda: len(self._database.events._writer._waiting) >= self._others)

    def close(self) -> None:
        event.remove(self._database.engine, "commit", self._hold)


def append_in_threads(database: Database, batches: list[list[ProjectRenamed]]) -> tuple[list[Any], int]:
    """Starts the others during the commit of the first batch; returns the outcome of each, and the commits."""
    held = HeldCommit(database, len(batches) - 1)
    with ThreadPoolExecutor(len(batches)) as pool:
        first = pool.submit(database.events.append_all, batches[0])
        assert held.held.wait(PATIENCE)
        futures = [first, *(pool.submit(database.events.append_all, batch) for batch in batches[1:])]
        outcomes = [future.exception() or future.result() for future in futures]
    held.close()
    return outcomes, held.commits


@pytest.mark.postgresql_too("the lock that orders appends")
def test_waiting_appends_share_a_commit(database: Database) -> None:
    batches = [[renamed(f"{thread}-{part}") for part in range(thread % 3 + 1)] for thread in range(12)]

    outcomes, commits = append_in_threads(database, batches)

    assert commits == 2
    for batch, stored in zip(batches, outcomes, strict=True):
        assert [s.event for s in stored] == batch
        assert [s.sequence for s in stored] == list(range(stored[0].sequence, stored[0].sequence + len(batch)))
    assert sorted(s for stored in outcomes for s in stored) == database.events.replay_all()


def test_the_leader_waits_for_threads_that_shared_the_last_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, the first thread that returns would commit alone, and the others would share the next commit."""
    append_in_threads(database, [[renamed(str(number))] for number in range(6)])
    monkeypatch.setattr(threads, "GATHERING_SECONDS", 20)  # long enough for a busy machine
    commits: list[object] = []
    event.listen(database.engine, "commit", lambda connection: commits.append(connection))

    with ThreadPoolExecutor(5) as pool:
        coming = [pool.submit(database.events.append_all, [renamed(f"again {number}")]) for number in range(5)]
        assert all(len(appended.result(60)) == 1 for appended in coming)

    assert len(commits) == 1


def test_the_leader_does_not_wait_again_after_it_waited_in_vain(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_in_threads(database, [[renamed(str(number))] for number in range(6)])
    monkeypatch.setattr(threads, "GATHERING_SECONDS", 2)

    durations = []
    for number in range(3):
        begun = time.monotonic()
        database.events.append_all([renamed(f"alone {number}")])
        durations.append(time.monotonic() - begun)

    assert durations[0] >= 2
    assert max(durations[1:]) < 2


@pytest.mark.postgresql_too("a failed statement ends the transaction")
def test_a_failed_batch_does_not_fail_the_batches_that_share_its_commit(database: Database) -> None:
    def refuse(_: object, stored: list[StoredEvent[OrchestrationEvent]]) -> None:
        for index, (_, renaming, _) in enumerate(stored):
            if isinstance(renaming, ProjectRenamed) and renaming.name.startswith("bad"):
                raise LookupError(index, renaming.name)

    database.events._appender._on_append = refuse
    batches = [[renamed("good 0")], [renamed("good 1")], [renamed("ok"), renamed("bad 2")], [renamed("bad 3")]]
    batches += [[renamed("good 4")]]

    outcomes, _ = append_in_threads(database, batches)

    assert [error.args for error in outcomes if isinstance(error, LookupError)] == [(1, "bad 2"), (0, "bad 3")]
    assert [s.event.name for s in database.events.replay_all()] == [  # type: ignore[union-attr]
        stored[0].event.name for stored in sorted(o for o in outcomes if isinstance(o, list))
    ]
    assert database.events.last_sequence() == 3


def test_all_appends_that_share_a_commit_learn_that_the_database_is_unavailable(sqlite_url: URL) -> None:
    with Database.open(
        AppConfig(database={"busy_timeout": 0.05}), url=sqlite_url, maintain_projections=False
    ) as database:
        with database.engine.begin(), ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(database.events.append_all, [renamed(str(n))]) for n in range(8)]
            errors = [future.exception() for future in futures]
        assert all(isinstance(error, StoreUnavailable) for error in errors)
        assert len(set(map(id, errors))) == 8
        assert len(database.events.append_all([renamed("after")])) == 1
        assert database.events.last_sequence() == 1


def test_an_interrupted_leader_does_not_fail_the_other_appends(database: Database) -> None:
    interrupted = threading.Event()

    def interrupt(connection: object, stored: list[StoredEvent[OrchestrationEvent]]) -> None:
        if not interrupted.is_set() and len(stored) > 1:
            interrupted.set()
            raise KeyboardInterrupt

    database.events._appender._on_append = interrupt

    outcomes, _ = append_in_threads(database, [[renamed(str(number))] for number in range(6)])

    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(KeyboardInterrupt) == 1
    assert kinds.count(list) == 5
    assert database.events.last_sequence() == 5


@pytest.mark.timeout(method="thread")  # the test uses the timer of the other method
def test_a_thread_that_is_interrupted_while_it_waits_stores_nothing(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        held = HeldCommit(database, others=2)  # more than there are: this thread is one of them
        leader = threading.Thread(target=database.events.append_all, args=([renamed("leader")],))
        leader.start()
        assert held.held.wait(PATIENCE)

        def interrupt(*_: object) -> None:
            raise InterruptedError

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(InterruptedError):
            database.events.append_all([renamed("interrupted")])
        signal.signal(signal.SIGALRM, before)
        held._others = 0
        leader.join()
        held.close()

        assert [s.event.name for s in database.events.append_all([renamed("after")])] == ["after"]  # type: ignore[union-attr]
        assert [s.event.name for s in database.events.replay_all()] == ["leader", "after"]  # type: ignore[union-attr]


def test_after_an_interrupt_in_a_shared_commit_every_thread_wakes(migrated_lasting_url: URL) -> None:
    """Each thread wakes the next one, and skips threads that no longer wait."""
    main = threading.get_ident()
    left = threading.Event()
    outcomes: list[str] = []

    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        writer: Any = database.events._writer

        def append(name: str, after: int) -> None:
            wait_for(lambda: len(writer._waiting) == after)
            (stored,) = database.events.append_all([renamed(name)])
            outcomes.append(stored.event.name)  # type: ignore[union-attr]

        def interrupt(*_: object) -> None:
            raise InterruptedError

        def interrupt_in_second_commit(_: object) -> None:
            if held.commits == 2:
                signal.pthread_kill(main, signal.SIGUSR1)
                assert left.wait(PATIENCE)

        held = HeldCommit(database, others=5)
        event.listen(database.engine, "commit", interrupt_in_second_commit)
        first = threading.Thread(target=append, args=("first", 0), daemon=True)
        first.start()
        assert held.held.wait(PATIENCE)
        others = [threading.Thread(target=append, args=(str(n), n), daemon=True) for n in (0, 1, 3, 4)]
        for thread in others:
            thread.start()
        before = signal.signal(signal.SIGUSR1, interrupt)
        with pytest.raises(InterruptedError):
            append("interrupted", 2)
        left.set()
        signal.signal(signal.SIGUSR1, before)
        for thread in (first, *others):
            thread.join(PATIENCE)
        held.close()
        event.remove(database.engine, "commit", interrupt_in_second_commit)

        assert sorted(outcomes) == ["0", "1", "3", "4", "first"]
        assert [s.event.name for s in database.events.replay_all()] == ["first", "0", "1", "interrupted", "3", "4"]  # type: ignore[union-attr]


# Python only reports an interrupt in a finalizer or in the clean-up of a driver.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.timeout(method="thread")  # the test uses the timer of the other method
def test_interrupts_at_any_moment_cause_no_hang_and_no_partial_batch(
    migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "LEADER_CHECK_SECONDS", 0.05)
    chance = random.Random(1)
    over = threading.Event()
    acknowledged: list[list[int]] = []

    class Interrupt(BaseException):
        pass

    def interrupt(_: int, frame: FrameType | None) -> None:
        if cannot_be_interrupted(frame):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
        else:
            raise Interrupt

    def append(database: Database, name: str) -> None:
        acknowledged.append([s.sequence for s in database.events.append_all([renamed(name)] * 3)])

    def go_on(database: Database) -> None:
        while not over.is_set():
            with suppress(StoreUnavailable):  # this append shared the commit of the interrupted one
                append(database, "other")

    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        others = [threading.Thread(target=go_on, args=(database,), daemon=True) for _ in range(2)]
        for thread in others:
            thread.start()
        before = signal.signal(signal.SIGALRM, interrupt)
        for _ in range(300):
            with suppress(Interrupt):  # the interrupt may follow an error that an earlier interrupt caused
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 5e-3))
                    for _ in range(20):
                        append(database, "interrupted")
                except (Interrupt, PersistenceError, AssertionError):
                    pass  # pydantic and SQLAlchemy sometimes convert it to one of their errors
                signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
        for thread in others:
            thread.join(PATIENCE)
            assert not thread.is_alive()

        log = [s.sequence for s in database.events.replay_all()]
        assert log == [*range(1, len(log) + 1)]
        assert len(log) % 3 == 0
        stored = [sequence for batch in acknowledged for sequence in batch]
        assert len(set(stored)) == len(stored)
        assert set(stored) <= set(log)
        append(database, "after")


def cannot_be_interrupted(frame: FrameType | None) -> bool:
    """Returns whether SQLAlchemy's connection pool, or pytest, called the code of this frame.

    The queue of the pool locks with a `threading.Condition`, which is written in Python. An exception that a signal
    handler raises between its statements can leave that lock held, and each later checkout then waits forever. No
    code of ours can prevent that, so the test leaves these frames out. And pytest reports an interrupt in its own hook
    for exceptions in finalizers as an error of the test.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith(CONNECTION_POOL) or frame.f_code.co_name == "unraisable_hook":
            return True
        frame = frame.f_back
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        os.sched_yield()


def test_closing_returns_the_connection_and_leaves_the_store_usable(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([renamed("a")])
        database.events.close()
        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        database.events.close()

        assert database.events.append_all([renamed("b")])[0].sequence == 2


def test_a_garbage_collected_store_returns_its_connection_at_once(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        store = EventStore(database.engine)
        store.append_all([renamed("a")])

        del store

        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def exit_code_of_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(PATIENCE)  # ends the child if it deadlocks
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_forked_during_an_append_of_another_thread_does_not_hang(migrated_lasting_url: URL) -> None:
    # On SQLite, the child waits in vain; on a server, it gets its turn.
    busy_timeout = 0.2 if migrated_lasting_url.get_backend_name() == "sqlite" else 20
    config = AppConfig(database={"busy_timeout": busy_timeout})
    with Database.open(config, url=migrated_lasting_url, maintain_projections=False) as database:
        in_the_middle = threading.Event()
        forked = threading.Event()

        def wait(*_: object) -> None:
            in_the_middle.set()
            assert forked.wait(PATIENCE)

        def append_in_child() -> None:
            event.remove(database.engine, "commit", wait)
            with suppress(StoreUnavailable):  # SQLite in the child takes the parent's lock for its own
                database.events.append_all([renamed("child")])

        event.listen(database.engine, "commit", wait)
        appending = threading.Thread(target=database.events.append_all, args=([renamed("parent")],))
        appending.start()
        assert in_the_middle.wait(PATIENCE)
        threading.Timer(1, forked.set).start()  # then a child on PostgreSQL gets its turn
        assert exit_code_of_child(append_in_child) == 0
        appending.join()
        event.remove(database.engine, "commit", wait)

        database.events.append_all([renamed("after")])
        log = database.events.replay_all()
        assert [s.sequence for s in log] == list(range(1, len(log) + 1))
        assert {s.event.name for s in log} >= {"parent", "after"}  # type: ignore[union-attr]


@pytest.mark.postgresql_too("connections to a server")
def test_a_child_does_not_use_its_parents_connections(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([renamed("a")])
        database.events.replay_all()
        inherited = []
        event.listen(database.engine, "checkout", lambda connection, *_: inherited.append(id(connection)))
        with database.engine.connect() as connection:
            mine = id(connection.connection.dbapi_connection)
        assert mine in inherited

        def append_in_child() -> None:
            inherited.clear()
            database.events.append_all([renamed("b")])
            assert len(inherited) == 1
            assert mine not in inherited

        assert exit_code_of_child(append_in_child) == 0


@pytest.mark.postgresql_too("connections to a server")
def test_parent_and_forked_child_both_append(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([renamed("before the fork")])
        assert exit_code_of_child(lambda: database.events.append_all([renamed("child")])) == 0
        database.events.append_all([renamed("parent")])
        database.events.append_all([renamed(str(uuid4()))])

        log = database.events.replay_all()
        assert [s.sequence for s in log] == [1, 2, 3, 4]
        assert {s.event.name for s in log[:3]} == {"before the fork", "child", "parent"}  # type: ignore[union-attr]
