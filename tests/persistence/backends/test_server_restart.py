"""A PostgreSQL server restarts under threads and tasks: each call works, or reports that it failed."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest
import sqlalchemy
from helpers.private_postgresql_server import PrivateServer, binaries
from sqlalchemy import URL

from peon.orchestration import OrchestrationEvent, ProjectCreated
from peon.persistence import Database, StoredEvent, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PATIENCE = 60
APPENDERS = 4
EACH = 20
"""How many appends each appender makes between two restarts."""

MODES: tuple[Literal["fast", "immediate"], ...] = ("fast", "immediate", "immediate")


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server is installed here")
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        server = PrivateServer(found, Path(name))
        yield server
        server.stop()


def created(name: str) -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name=name, path="/")


class Outcomes:
    """The outcome of each append, by the name that it stored."""

    def __init__(self) -> None:
        self.stored: list[dict[str, int]] = [{} for _ in range(APPENDERS)]
        self.refused: set[str] = set()

    def refuse(self, name: str, error: StoreUnavailable) -> None:
        if "may have taken place" not in str(error):
            self.refused.add(name)

    def goal(self) -> Callable[[], bool]:
        """Returns a condition: each appender has made its appends before the next restart."""
        goals = [len(stored) + EACH for stored in self.stored]
        return lambda: all(len(stored) >= goal for stored, goal in zip(self.stored, goals, strict=True))

    def assert_true(self, url: URL) -> int:
        """Compares the outcomes with the log, and returns the length of the log."""
        with Database.open(url=url) as database:
            log = database.events.replay_all()
            assert database.projections.verify() == []
        logged = {stored.event.name: stored.sequence for stored in log if isinstance(stored.event, ProjectCreated)}
        assert len(logged) == len(log), "something was stored twice"
        assert [stored.sequence for stored in log] == [*range(1, len(log) + 1)]
        for stored in self.stored:
            assert stored.items() <= logged.items()
        assert not self.refused & logged.keys()
        return len(log)


class ReadEvents:
    """The events that a reader has read: all up to the last one."""

    def __init__(self) -> None:
        self.last = 0

    def see(self, stored: StoredEvent[OrchestrationEvent]) -> None:
        assert stored.sequence == self.last + 1
        self.last = stored.sequence


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def test_threads_survive_restarts(server: PrivateServer) -> None:
    outcomes = Outcomes()
    stop, end = threading.Event(), threading.Event()
    streamed, followed = ReadEvents(), ReadEvents()

    def append(number: int) -> None:
        """Every second append has a command, which is repeated until it succeeds."""
        for turn in count():
            event, command_id = created(f"{number}-{turn}"), uuid4() if number % 2 else None
            while not stop.is_set():
                try:
                    (stored,) = database.events.append_all([event], command_id=command_id)
                except StoreUnavailable as error:
                    if command_id is None:
                        outcomes.refuse(event.name, error)
                        break
                else:
                    outcomes.stored[number][event.name] = stored.sequence
                    break
            if stop.is_set():
                return

    def stream() -> None:
        while not end.is_set() or streamed.last < followed.last:
            try:
                for stored in database.events.stream(after=streamed.last):
                    streamed.see(stored)
            except StoreUnavailable:
                pass

    def follow() -> None:
        with database.events.subscribe(stop=end) as subscription:
            while not end.is_set():
                try:
                    for stored in subscription:
                        followed.see(stored)
                except StoreUnavailable:
                    pass

    with Database.open(url=server.url) as database, Database.open(url=server.url) as idle, ThreadPoolExecutor() as pool:
        use_all(idle)
        work = [*(pool.submit(append, number) for number in range(APPENDERS)), pool.submit(stream), pool.submit(follow)]
        try:
            for mode in MODES:
                wait_until(outcomes.goal())
                server.restart(mode)
                use_all(idle)
            wait_until(outcomes.goal())
            stop.set()
            for appending in work[:APPENDERS]:
                appending.result(PATIENCE)
            last = idle.events.last_sequence()
            wait_until(lambda: followed.last == last)
        finally:
            stop.set()
            end.set()
        for ended in work:
            ended.result(PATIENCE)
    assert outcomes.assert_true(server.url) == streamed.last == followed.last


def use_all(database: Database) -> None:
    """Makes the first calls after a restart, on connections that the restart has ended."""
    before = database.events.last_sequence()
    database.settings.set("at", before)
    (stored,) = database.events.append_all([created(f"idle {uuid4()}")])
    assert stored.sequence > before
    assert database.settings.get("at") == before
    assert next(iter(database.events.stream(after=stored.sequence - 1))) == stored
    assert database.read_model.projects(limit=1)
    # The store does not know this pool yet, and the server has another identity since the restart.
    engine = sqlalchemy.create_engine(database.engine.url)
    with engine.begin() as connection:
        database.events.append_all([created(f"foreign {uuid4()}")], connection=connection)
    engine.dispose()


def test_tasks_survive_restarts(server: PrivateServer) -> None:
    outcomes = Outcomes()
    streamed, followed = ReadEvents(), ReadEvents()

    async def scenario() -> None:
        stop, end = asyncio.Event(), asyncio.Event()

        async def append(number: int) -> None:
            for turn in count():
                event, command_id = created(f"{number}-{turn}"), uuid4() if number % 2 else None
                while not stop.is_set():
                    try:
                        (stored,) = await database.events.append_all([event], command_id=command_id)
                    except StoreUnavailable as error:
                        if command_id is None:
                            outcomes.refuse(event.name, error)
                            break
                    else:
                        outcomes.stored[number][event.name] = stored.sequence
                        break
                if stop.is_set():
                    return

        async def stream() -> None:
            while not end.is_set() or streamed.last < followed.last:
                try:
                    async for stored in database.events.stream(after=streamed.last):
                        streamed.see(stored)
                except StoreUnavailable:
                    pass

        async def follow() -> None:
            async with database.events.subscribe(stop=end) as subscription:
                while not end.is_set():
                    try:
                        async for stored in subscription:
                            followed.see(stored)
                    except StoreUnavailable:
                        pass

        async def until(condition: Callable[[], bool]) -> None:
            await asyncio.to_thread(wait_until, condition)

        async with await AsyncDatabase.open(url=server.url) as database, asyncio.TaskGroup() as group:
            appending = [group.create_task(append(number)) for number in range(APPENDERS)]
            group.create_task(stream())
            group.create_task(follow())
            for mode in MODES:
                await until(outcomes.goal())
                await asyncio.to_thread(server.restart, mode)
            await until(outcomes.goal())
            stop.set()
            await asyncio.gather(*appending)
            last = await database.events.last_sequence()
            await until(lambda: followed.last == last)
            end.set()

    asyncio.run(scenario())
    assert outcomes.assert_true(server.url) == streamed.last == followed.last
