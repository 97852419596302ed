"""A thread that is interrupted at any moment of an append, as by a signal handler that raises."""

import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self
from uuid import UUID

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import URL

import peon
from peon.orchestration import ProjectRenamed
from peon.persistence import Database

PACKAGES = tuple(str(module.__path__[0]) for module in (peon, psycopg, sqlalchemy))


class Interrupt(BaseException):
    pass


class InterruptAtCall:
    """Raises at a call that this thread makes, counted from 1, of Peon, of psycopg or of SQLAlchemy.

    It spares SQLAlchemy's pool, and what the pool calls: an interrupt there may leave its lock held or lose a
    connection, which Peon cannot prevent.

    Attributes:
        raised: Whether there was such a call.
    """

    def __init__(self, call: int) -> None:
        self._left = call
        self.raised = False

    def _profile(self, frame: FrameType, kind: str, _: object) -> None:
        # Python runs signal handlers when a function begins, and after one that is written in C.
        if kind not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGES):
            return
        self._left -= 1
        if self._left <= 0 and not self.raised and not in_pool(frame):
            self.raised = True
            raise Interrupt

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        sys.setprofile(None)
        return kind is not None  # pydantic and SQLAlchemy take an interrupt for an error of theirs, at times


def in_pool(frame: FrameType | None) -> bool:
    while frame is not None and "sqlalchemy/pool" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def append(store: Database) -> int:
    (stored,) = store.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="x")])
    return stored.sequence


@pytest.fixture
def database(migrated_lasting_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        yield database
        database.events.close()
        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("keeps_connection", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_next_append_succeeds_and_nothing_is_lost(database: Database, keeps_connection: bool) -> None:
    calls = last = 0
    while True:
        calls += 1
        if keeps_connection:
            last = append(database)
        else:
            database.events.close()  # the interrupted append takes a connection, and sets it up
        with InterruptAtCall(calls) as interrupt:
            append(database)
        if not interrupt.raised:
            break
        after = append(database)
        assert after in (last + 1, last + 2)
        last = after
    assert calls > 100
    assert [stored.sequence for stored in database.events.replay_all()] == [*range(1, last + 2)]
