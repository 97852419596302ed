"""What tests run in other processes: importable there, as the modules of tests are not."""

import logging
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.synchronize import Barrier
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Engine, event

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, PersistenceError

ResultT = TypeVar("ResultT")

PATIENCE = 60
"""Seconds after which a process is taken to hang."""

context = multiprocessing.get_context("forkserver")
# Each process then starts in milliseconds.
context.set_forkserver_preload(["peon.persistence", "alembic.command"])


def run(function: Callable[..., ResultT], *args: object) -> ResultT:
    """Returns what the function returns in a process of its own; raises what it raises, or `TimeoutError`."""
    with context.Pool(1) as pool:
        return pool.apply_async(function, args).get(timeout=PATIENCE)


def exit_codes(function: Callable[..., object], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """Runs the function in as many processes at once as there are arguments; `None` for one that hangs."""
    return exit_codes_of([(function, args) for args in arguments], PATIENCE)


def exit_codes_of(calls: list[tuple[Callable[..., object], tuple[Any, ...]]], patience: float) -> list[int | None]:
    """Makes each call in a process of its own, all at once.

    Returns:
        `None` for one that was still running after so many seconds, or when another had failed.
    """
    processes = [context.Process(target=function, args=args) for function, args in calls]
    for process in processes:
        process.start()
    deadline = time.monotonic() + patience
    running = {process.sentinel for process in processes}
    try:
        while running and not any(process.exitcode for process in processes):
            if not (ended := wait(running, deadline - time.monotonic())):
                break
            running.difference_update(ended)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def open_and_append(barrier: Barrier, url: str) -> None:
    barrier.wait(PATIENCE)
    with Database.open(url=url, projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=uuid4(), name=str(os.getpid()))])


def append_one_by_one(barrier: Barrier, url: str, writer: int, count: int) -> None:
    with Database.open(url=url, projections=False) as database:
        barrier.wait(PATIENCE)
        for number in range(count):
            (stored,) = database.events.append_all([ProjectRenamed(project_id=UUID(int=writer), name=str(number))])
            assert stored.sequence > number


def read_until(barrier: Barrier, url: str, writers: int, last: int) -> None:
    """Reads whatever is there, again and again: each event once, in order, and in the order of its writer."""
    expected = dict.fromkeys((UUID(int=writer) for writer in range(writers)), 0)
    with Database.open(url=url, projections=False) as database:
        barrier.wait(PATIENCE)
        position = 0
        while position < last:
            for stored in database.events.stream(after=position):
                assert stored.sequence == position + 1
                assert isinstance(stored.event, ProjectRenamed)
                assert int(stored.event.name) == expected[stored.event.project_id]
                expected[stored.event.project_id] += 1
                position = stored.sequence


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def open_and_die_after_statement(url: str, number: int) -> None:
    count = 0

    @event.listens_for(Engine, "after_cursor_execute")
    def count_statement(*_: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()

    Database.open(url=url, projections=False).close()


def open_and_die_before_commit(url: str) -> None:
    event.listen(Engine, "commit", lambda _: die())
    Database.open(url=url, projections=False).close()


def open_and_die_before_the_copy_has_its_name(url: str) -> None:
    sys.addaudithook(lambda name, args: die() if name == "os.rename" and str(args[1]).endswith(".backup") else None)
    Database.open(url=url, projections=False).close()


def write_and_die(path: str) -> None:
    """Leaves a -wal file behind."""
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO settings VALUES ('written', 'before death')")
    connection.commit()
    die()


class OpensDatabase(logging.Handler):
    """Stores log records in a database, or would."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.outcomes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with Database.open(url=self.url, projections=False) as database:
                database.events.append_all([ProjectRenamed(project_id=uuid4(), name=record.getMessage())])
        except PersistenceError as error:
            self.outcomes.append(str(error))
        else:
            self.outcomes.append("stored")


def open_while_a_handler_opens(url: str, logger: str, other: str) -> list[str]:
    handler = OpensDatabase(other)
    with _handling(handler, logger):
        Database.open(url=url, projections=False).close()
    return handler.outcomes


class StartsThread(logging.Handler):
    """Starts it at the first log record of a migration."""

    def __init__(self, thread: Thread) -> None:
        super().__init__()
        self.thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        if not self.thread.ident:
            self.thread.start()


def open_while_a_thread_of_a_handler_opens(url: str) -> list[str]:
    opener = OpensDatabase(url)
    thread = Thread(target=opener.emit, args=[logging.makeLogRecord({"msg": "one of them"})])
    with _handling(StartsThread(thread), "alembic"):
        Database.open(url=url, projections=False).close()
    thread.join()
    return opener.outcomes


def fork_while_another_thread_migrates(url: str, url_of_child: str) -> int:
    """Returns the exit code of the child, which opens a database, too."""
    children: list[int] = []
    forked = Event()

    def fork() -> None:
        child = os.fork()
        if not child:
            signal.alarm(10)
            logging.getLogger("alembic").handlers.clear()
            Database.open(url=url_of_child, projections=False).close()
            os._exit(0)
        children.append(child)
        forked.set()

    class WaitsForFork(StartsThread):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            forked.wait(PATIENCE)

    with _handling(WaitsForFork(Thread(target=fork)), "alembic"):
        Database.open(url=url, projections=False).close()
    return os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])


@contextmanager
def _handling(handler: logging.Handler, logger: str) -> Iterator[None]:
    for name in ("alembic", "peon"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(logger).addHandler(handler)
    yield
    logging.getLogger(logger).removeHandler(handler)
