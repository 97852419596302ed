"""Child processes of the tests of projections."""

from multiprocessing.synchronize import Barrier
from random import Random
from typing import Any

from helpers.agent_session import long_session
from helpers.processes import PATIENCE, die
from helpers.random_events import batches
from sqlalchemy import Engine, event

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database
from peon.persistence.log import pages
from peon.persistence.projections import manager, rebuilding

TURNS = 20


def session() -> list[list[OrchestrationEvent]]:
    """Returns the same batches in every process."""
    return batches(Random(1), long_session(TURNS), (1, 2, 5, 12))


def use_small_pages() -> None:
    pages.PAGE_EVENTS = 20
    manager.PAGES_A_COMMIT = 1
    rebuilding.PAGES_A_COMMIT = 1


def open_together(barrier: Barrier, url: str) -> None:
    use_small_pages()
    barrier.wait(PATIENCE)
    Database.open(url=url).close()


class Countdown:
    """Counts the statements of all connections, commits included, and kills the process before one of them."""

    def __init__(self, url: str) -> None:
        self.remaining: int | None = None
        if url.startswith("sqlite"):
            event.listen(Engine, "connect", lambda connection, _: connection.set_trace_callback(self.count))
        else:
            import psycopg

            self._count_calls(psycopg.Cursor, "execute")
            self._count_calls(psycopg.Cursor, "executemany")
            self._count_calls(psycopg.Connection, "commit")

    def start(self, statements: int) -> None:
        self.remaining = statements

    def count(self, *_: object) -> None:
        if self.remaining is None:
            return
        self.remaining -= 1
        if self.remaining < 0:
            die()

    def _count_calls(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.count()
            return original(*args, **options)

        setattr(owner, name, counted)


def append_and_die(url: str, first: int, statements: int) -> None:
    """Appends the batches from number `first` on."""
    countdown = Countdown(url)
    with Database.open(url=url) as database:
        countdown.start(statements)
        for batch in session()[first:]:
            database.events.append_all(batch)


def open_and_die(url: str, statements: int) -> None:
    """Opens the database, which catches up, or rebuilds if the version has changed."""
    use_small_pages()
    Countdown(url).start(statements)
    Database.open(url=url).close()


def statements_of_opening(url: str) -> int:
    """Returns how many statements `open_and_die` executes if it is not killed."""
    use_small_pages()
    countdown = Countdown(url)
    countdown.start(10**9)
    Database.open(url=url).close()
    return 10**9 - (countdown.remaining or 0)


def rebuild_and_die(url: str, statements: int) -> None:
    """Rebuilds with short transactions."""
    _rebuild(url, statements)


def statements_of_rebuild(url: str) -> int:
    """Returns how many statements `rebuild_and_die` executes if it is not killed."""
    return 10**9 - _rebuild(url, 10**9)


def _rebuild(url: str, statements: int) -> int:
    use_small_pages()
    rebuilding.STEP_SECONDS = -1.0
    countdown = Countdown(url)
    with Database.open(url=url, maintain_projections=False) as database:
        countdown.start(statements)
        database.projections.rebuild()
        return countdown.remaining or 0
