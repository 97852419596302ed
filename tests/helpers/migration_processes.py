"""Child processes of the tests of migrations."""

import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from threading import Event, Thread
from uuid import uuid4

from helpers.processes import PATIENCE, die
from sqlalchemy import Engine, event

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, PersistenceError


def open_and_append(barrier: Barrier, url: str) -> None:
    barrier.wait(PATIENCE)
    with Database.open(url=url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=uuid4(), name=str(os.getpid()))])


def open_and_die_after_statement(url: str, number: int) -> None:
    count = 0

    @event.listens_for(Engine, "after_cursor_execute")
    def count_statement(*_: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()

    Database.open(url=url, maintain_projections=False).close()


def open_and_die_before_commit(url: str) -> None:
    event.listen(Engine, "commit", lambda _: die())
    Database.open(url=url, maintain_projections=False).close()


def open_and_die_before_the_copy_has_its_name(url: str) -> None:
    sys.addaudithook(lambda name, args: die() if name == "os.rename" and str(args[1]).endswith(".backup") else None)
    Database.open(url=url, maintain_projections=False).close()


def write_and_die(path: str) -> None:
    """Leaves a -wal file, because the process does not close its connection."""
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO settings VALUES ('written', 'before death')")
    connection.commit()
    die()


class OpensDatabase(logging.Handler):
    """Tries to store log records in a database."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.outcomes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with Database.open(url=self.url, maintain_projections=False) as database:
                database.events.append_all([ProjectRenamed(project_id=uuid4(), name=record.getMessage())])
        except PersistenceError as error:
            self.outcomes.append(str(error))
        else:
            self.outcomes.append("stored")


def open_while_a_handler_opens(url: str, logger: str, other: str) -> list[str]:
    handler = OpensDatabase(other)
    with _handling(handler, logger):
        Database.open(url=url, maintain_projections=False).close()
    return handler.outcomes


class StartsThread(logging.Handler):
    """Starts a thread at the first log record of a migration."""

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
        Database.open(url=url, maintain_projections=False).close()
    thread.join()
    return opener.outcomes


def fork_while_another_thread_migrates(url: str, url_of_child: str) -> int:
    """Returns the exit code of the child, which also opens a database."""
    children: list[int] = []
    forked = Event()

    def fork() -> None:
        child = os.fork()
        if not child:
            signal.alarm(10)
            logging.getLogger("alembic").handlers.clear()
            Database.open(url=url_of_child, maintain_projections=False).close()
            os._exit(0)
        children.append(child)
        forked.set()

    class WaitsForFork(StartsThread):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            forked.wait(PATIENCE)

    with _handling(WaitsForFork(Thread(target=fork)), "alembic"):
        Database.open(url=url, maintain_projections=False).close()
    return os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])


@contextmanager
def _handling(handler: logging.Handler, logger: str) -> Iterator[None]:
    for name in ("alembic", "peon"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(logger).addHandler(handler)
    yield
    logging.getLogger(logger).removeHandler(handler)
