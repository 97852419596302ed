"""Processes that fork while other threads use a database."""

import os
import signal
import threading
import warnings
from collections.abc import Callable
from uuid import UUID

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, create_engine

CHILD_SECONDS = 5
"""After this many seconds, a child is considered to hang."""


def renamed(name: str) -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


def exit_code_of_child(work: Callable[[], object]) -> int:
    """Returns the exit code of a forked child that does the work: 1 if it fails, -SIGALRM if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tested
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CHILD_SECONDS)  # the child's own way out
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_under_readers(url: str, children: int) -> list[int]:
    """Forks while a subscription and threads read, connect and disconnect; each child opens the database itself.

    Returns:
        The exit codes of the children.
    """
    over = threading.Event()
    with Database.open(url=url, maintain_projections=False) as database:
        database.events.append_all([renamed(str(number)) for number in range(100)])

        def read() -> None:
            while not over.is_set():
                database.events.replay_all()

        def reconnect() -> None:
            while not over.is_set():
                engine = create_engine(url)
                with engine.connect():
                    pass
                engine.dispose()

        def follow() -> None:
            for _ in database.events.subscribe(stop=over):
                pass

        threads = [threading.Thread(target=work) for work in (read, reconnect, follow)]
        for thread in threads:
            thread.start()
        try:
            return [exit_code_of_child(database.events.last_sequence) for _ in range(children)]
        finally:
            over.set()
            for thread in threads:
                thread.join()
