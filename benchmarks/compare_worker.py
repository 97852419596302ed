"""Measures one checkout for compare.py.

Each line of standard input is a command, `prepare FIGURE` or `measure FIGURE`; each answer is the value as a line of
JSON. The value that `prepare` answers does not count: its measurement filled the caches. The first line, without a
command, says which package was imported and which figures there are.

This program runs against old checkouts too, so it uses only what all of them offer.
"""

import asyncio
import gc
import inspect
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from postgresql_server import new_schema, settle
from sqlalchemy import URL, make_url
from workload import (
    SAMPLE,
    SESSION_COMMIT_EVENTS,
    STREAMED_CHUNK_CHARACTERS,
    PlainStore,
    append_each,
    append_from_threads,
    batches_of,
    consume,
    endless_session,
    long_thread,
    seconds,
    session_events,
)

import peon
from peon.orchestration import OrchestrationEvent
from peon.persistence import Database
from peon.persistence.asynchronous import AsyncDatabase

Unit = Literal["events/s", "ms"]
Measure = Callable[[], float]

REPLAYED_EVENTS = 20_000
CAUGHT_UP_EVENTS = 10_000
SNAPSHOT_EVENTS = 3_000
OPENED_EVENTS = 1_000
THREAD_MESSAGES = 2_000
PAGE_MESSAGES = 50
READS = 20
"""Reads in one measurement of a page: a single one takes about a millisecond."""

OPENINGS = 5
THREADS = 16
COMMITS_PER_THREAD = 25
FILL_BATCH_EVENTS = 1_000


def without_projections(database: type[Database | AsyncDatabase]) -> dict[str, Any]:
    """Returns the arguments of `open` for the log alone; the argument was renamed."""
    parameters = inspect.signature(database.open).parameters
    return {"maintain_projections" if "maintain_projections" in parameters else "projections": False}


@dataclass
class Bench:
    """What measurements share: a folder, a server, an event loop, and what to close at the end."""

    folder: Path
    server: URL | None
    stack: ExitStack
    runner: asyncio.Runner

    def sqlite(self) -> URL:
        return make_url(f"sqlite:///{self.folder}/{uuid4().hex}.db")

    def postgresql(self) -> URL:
        if self.server is None:
            raise ValueError("this figure needs a PostgreSQL server")
        return self.stack.enter_context(new_schema(self.server))

    def open_log(self, url: URL) -> Database:
        return self.stack.enter_context(Database.open(url=url, **without_projections(Database)))

    def filled_log(self, url: URL, events: int, batch_events: int = FILL_BATCH_EVENTS) -> Database:
        database = self.open_log(url)
        for batch in batches_of(session_events(SAMPLE, events, STREAMED_CHUNK_CHARACTERS), batch_events):
            database.events.append_all(batch)
        return database


def append(database: Database | PlainStore, size: int, commits: int) -> Measure:
    """Appends events of a streaming session, which continues from one measurement to the next."""
    session = endless_session(chunk_characters=STREAMED_CHUNK_CHARACTERS)
    append_all: Callable[[list[OrchestrationEvent]], object]
    append_all = database.append_all if isinstance(database, PlainStore) else database.events.append_all

    def measure() -> float:
        batches = batches_of(list(islice(session, size * commits)), size)
        return size * commits / seconds(partial(append_each, append_all, batches))

    return measure


def append_sqlite(bench: Bench, size: int, commits: int) -> Measure:
    return append(bench.open_log(bench.sqlite()), size, commits)


def append_with_projections(bench: Bench, size: int, commits: int) -> Measure:
    return append(bench.stack.enter_context(Database.open(url=bench.sqlite())), size, commits)


def append_postgresql(bench: Bench, size: int, commits: int) -> Measure:
    return append(bench.open_log(bench.postgresql()), size, commits)


def append_plain(bench: Bench, size: int, commits: int) -> Measure:
    plain = PlainStore(bench.folder / "plain.db")
    bench.stack.callback(plain.close)
    return append(plain, size, commits)


def append_together(bench: Bench) -> Measure:
    database = bench.open_log(bench.sqlite())
    session = endless_session()

    def measure() -> float:
        batches = batches_of(list(islice(session, COMMITS_PER_THREAD * THREADS)), 1)
        return len(batches) / seconds(partial(append_from_threads, database.events.append_all, batches, THREADS))

    return measure


def stream_sqlite(bench: Bench) -> Measure:
    database = bench.filled_log(bench.sqlite(), REPLAYED_EVENTS, SESSION_COMMIT_EVENTS)
    return lambda: REPLAYED_EVENTS / seconds(partial(consume, database.events.stream))


def replay_all_sqlite(bench: Bench) -> Measure:
    database = bench.filled_log(bench.sqlite(), REPLAYED_EVENTS, SESSION_COMMIT_EVENTS)
    return lambda: REPLAYED_EVENTS / seconds(database.events.replay_all)


def stream_postgresql(bench: Bench) -> Measure:
    url = bench.postgresql()
    database = bench.filled_log(url, REPLAYED_EVENTS)
    settle(url)
    return lambda: REPLAYED_EVENTS / seconds(partial(consume, database.events.stream))


def catch_up(bench: Bench) -> Measure:
    url = bench.sqlite()
    bench.filled_log(url, CAUGHT_UP_EVENTS).close()
    original = Path(str(url.database))
    copy = bench.folder / "catch_up.db"

    def measure() -> float:
        shutil.copy(original, copy)
        with Database.open(url=f"sqlite:///{copy}", **without_projections(Database)) as database:
            rate = CAUGHT_UP_EVENTS / seconds(database.projections.catch_up)
        copy.unlink()
        return rate

    return measure


def rebuild(bench: Bench) -> Measure:
    database = bench.filled_log(bench.sqlite(), CAUGHT_UP_EVENTS)
    database.projections.catch_up()
    return lambda: CAUGHT_UP_EVENTS / seconds(database.projections.rebuild)


def read_page(bench: Bench) -> Measure:
    database = bench.stack.enter_context(Database.open(url=bench.sqlite()))
    thread_id = uuid4()
    database.events.append_all(long_thread(thread_id, THREAD_MESSAGES))

    def read() -> None:
        for _ in range(READS):
            database.read_model.thread_messages(thread_id, limit=PAGE_MESSAGES)

    return lambda: seconds(read) * 1_000 / READS


def snapshot(bench: Bench) -> Measure:
    database = bench.filled_log(bench.sqlite(), SNAPSHOT_EVENTS)
    database.projections.catch_up()
    return lambda: seconds(database.read_model.snapshot) * 1_000


def open_database(bench: Bench) -> Measure:
    url = bench.sqlite()
    database = bench.filled_log(url, OPENED_EVENTS)
    database.projections.catch_up()
    database.close()

    def opening() -> float:
        opened: list[Database] = []
        duration = seconds(lambda: opened.append(Database.open(url=url)))
        opened[0].close()
        return duration

    return lambda: min(opening() for _ in range(OPENINGS)) * 1_000


def open_async_log(bench: Bench, url: URL) -> AsyncDatabase:
    database = bench.runner.run(AsyncDatabase.open(url=url, **without_projections(AsyncDatabase)))
    bench.stack.callback(lambda: bench.runner.run(database.close()))
    return database


def seconds_in_loop(bench: Bench, work: Callable[[], Awaitable[object]]) -> float:
    """Returns how long a coroutine takes, without the start and the end of the event loop's run."""

    async def timed() -> float:
        gc.collect()
        start = time.perf_counter()
        await work()
        return time.perf_counter() - start

    return bench.runner.run(timed())


def append_async(bench: Bench, commits: int) -> Measure:
    database = open_async_log(bench, bench.sqlite())
    session = endless_session()

    def measure() -> float:
        events = list(islice(session, commits))

        async def append_all() -> None:
            for event in events:
                await database.events.append_all([event])

        return commits / seconds_in_loop(bench, append_all)

    return measure


def replay_all_async(bench: Bench) -> Measure:
    url = bench.sqlite()
    bench.filled_log(url, REPLAYED_EVENTS, SESSION_COMMIT_EVENTS).close()
    database = open_async_log(bench, url)
    return lambda: REPLAYED_EVENTS / seconds_in_loop(bench, database.events.replay_all)


@dataclass(frozen=True)
class Figure:
    """Something to measure: `prepare` returns a function that measures it once."""

    unit: Unit
    prepare: Callable[[Bench], Measure]
    needs_server: bool = False


CONTROL = "control: plain sqlite3, append, 1 a commit"
"""Uses nothing of the package: how far its ratio is from 1 says how noisy the machine was."""

FIGURES = {
    CONTROL: Figure("events/s", partial(append_plain, size=1, commits=200)),
    "append, 1 a commit": Figure("events/s", partial(append_sqlite, size=1, commits=200)),
    "append, 10 a commit": Figure("events/s", partial(append_sqlite, size=10, commits=60)),
    "append, 1,000 a commit": Figure("events/s", partial(append_sqlite, size=1_000, commits=3)),
    "append with projections, 1 a commit": Figure("events/s", partial(append_with_projections, size=1, commits=200)),
    "append with projections, 10 a commit": Figure("events/s", partial(append_with_projections, size=10, commits=60)),
    f"append, 1 a commit, {THREADS} threads": Figure("events/s", append_together),
    "stream": Figure("events/s", stream_sqlite),
    "replay_all": Figure("events/s", replay_all_sqlite),
    "catch_up": Figure("events/s", catch_up),
    "rebuild": Figure("events/s", rebuild),
    f"page of {PAGE_MESSAGES} messages": Figure("ms", read_page),
    "snapshot": Figure("ms", snapshot),
    "Database.open": Figure("ms", open_database),
    "async append, 1 a commit": Figure("events/s", partial(append_async, commits=200)),
    "async replay_all": Figure("events/s", replay_all_async),
    "PostgreSQL append, 1 a commit": Figure("events/s", partial(append_postgresql, size=1, commits=100), True),
    "PostgreSQL append, 1,000 a commit": Figure("events/s", partial(append_postgresql, size=1_000, commits=3), True),
    "PostgreSQL stream": Figure("events/s", stream_postgresql, True),
}


def answer(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Takes the folder for databases, and the address of a server where there is one."""
    folder, *server = sys.argv[1:]
    figures = {name: (figure.unit, figure.needs_server) for name, figure in FIGURES.items()}
    answer({"package": peon.__file__, "figures": figures})
    with tempfile.TemporaryDirectory(dir=folder) as own, ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        bench = Bench(Path(own), make_url(server[0]) if server else None, stack, runner)
        prepared: dict[str, Measure] = {}
        for line in sys.stdin:
            command, _, name = line.rstrip("\n").partition(" ")
            if command == "prepare":
                prepared[name] = FIGURES[name].prepare(bench)
            answer(prepared[name]())


if __name__ == "__main__":
    main()
