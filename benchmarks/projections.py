"""Projections: appends that keep them up to date, against plain `sqlite3`; catch-up and rebuild against `stream`.

python benchmarks/projections.py [--session SESSION.jsonl] [--chunk 8] [--rounds 20] [--folder FOLDER]
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comparison import BestRates, Comparison, comparison_table
from rich.console import Console
from rich.progress import track
from tables import Table, share
from workload import (
    SAMPLE,
    STREAMED_CHUNK_CHARACTERS,
    PlainStore,
    append_each,
    batches_of,
    consume,
    session_events,
)

from peon import Database
from peon.orchestration import OrchestrationEvent

APPEND_TARGETS = {1: 0.35, 10: 0.45}
REPLAY_TARGETS: dict[str, float | None] = {"catch_up": 0.3, "rebuild": 0.3, "verify": None}
COMMITS = {1: 200, 10: 60}
"""Commits in a round of each batch size: few enough that many rounds run undisturbed."""

REPLAYED_EVENTS = 100_000
REPLAY_ROUNDS = 3
"""A round takes seconds here, and its length averages out what disturbs it."""


@dataclass(frozen=True)
class ProjectionResults:
    """What projections cost in a session with chunks of one length.

    Attributes:
        chunk_share: How many of the events are chunks, from 0 to 1.
        replayed_events: Events in the log that was replayed.
        appends: Against plain `sqlite3`, which stores the events only.
        replays: Against `stream` of the same log.
    """

    chunk_characters: int
    chunk_share: float
    replayed_events: int
    appends: list[Comparison]
    replays: list[Comparison]


def append_name(size: int) -> str:
    return f"append with projections, {size:,} a commit"


def measure_appends(folder: Path, events: list[OrchestrationEvent], rounds: int, console: Console) -> list[Comparison]:
    best = BestRates()
    with ExitStack() as stack:
        stores: dict[int, tuple[PlainStore, Database]] = {}
        for size in COMMITS:
            plain = stack.enter_context(closing(PlainStore(folder / f"plain-{size}.db")))
            database = stack.enter_context(Database.open(url=f"sqlite:///{folder}/peon-{size}.db"))
            stores[size] = plain, database
        for turn in track(range(rounds), "Appending with projections", console=console, transient=True):
            for size, (plain, database) in stores.items():
                # Not `some_batches`, which repeats events: projections refuse an id that they have.
                length = size * COMMITS[size]
                batches = batches_of(events[turn * length : (turn + 1) * length], size)
                name = append_name(size)
                best.measure(name, "baseline", length, partial(append_each, plain.append_all, batches))
                best.measure(name, "peon", length, partial(append_each, database.events.append_all, batches))
    return [best.comparison(append_name(size), target) for size, target in APPEND_TARGETS.items()]


def measure_replays(folder: Path, events: list[OrchestrationEvent], console: Console) -> list[Comparison]:
    log = folder / "log.db"
    with Database.open(url=f"sqlite:///{log}", maintain_projections=False) as database:
        for batch in batches_of(events, 1_000):
            database.events.append_all(batch)
    best = BestRates()
    for turn in track(range(REPLAY_ROUNDS), "Catching up and rebuilding", console=console, transient=True):
        copy = folder / f"{turn}.db"
        shutil.copy(log, copy)  # without projections, so that there is something to catch up
        with Database.open(url=f"sqlite:///{copy}", maintain_projections=False) as database:
            works: dict[str, Callable[[], object]] = {
                "stream": partial(consume, database.events.stream),
                "catch_up": database.projections.catch_up,
                "rebuild": database.projections.rebuild,
                "verify": database.projections.verify,
            }
            for name, work in works.items():
                best.measure(name, "peon", len(events), work)
        copy.unlink()
    return [best.comparison(name, target, baseline="stream") for name, target in REPLAY_TARGETS.items()]


def measure(
    folder: Path,
    rounds: int,
    console: Console,
    *,
    session: Path = SAMPLE,
    chunk_characters: int = STREAMED_CHUNK_CHARACTERS,
    replayed_events: int = REPLAYED_EVENTS,
) -> ProjectionResults:
    appended = max(size * commits for size, commits in COMMITS.items()) * rounds
    events = session_events(session, max(appended, replayed_events), chunk_characters)
    return ProjectionResults(
        chunk_characters=chunk_characters,
        chunk_share=sum(event.type == "MessageChunkReceived" for event in events) / len(events),
        replayed_events=replayed_events,
        appends=measure_appends(folder, events, rounds, console),
        replays=measure_replays(folder, events[:replayed_events], console),
    )


def session_name(results: ProjectionResults) -> str:
    chunks = f"{results.chunk_characters} characters"
    return f"chunks of {chunks}: {share(results.chunk_share)} of the events"


def tables(results: ProjectionResults) -> list[Table]:
    return [
        comparison_table(results.appends, "plain sqlite3", f"Append, {session_name(results)}"),
        comparison_table(results.replays, "stream", f"A log of {results.replayed_events:,} events"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", type=Path, default=SAMPLE)
    parser.add_argument("--chunk", type=int, default=STREAMED_CHUNK_CHARACTERS, help="characters of text in a chunk")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--replayed", type=int, default=REPLAYED_EVENTS, help="events in the log that is replayed")
    parser.add_argument("--folder", type=Path, help="where the databases are created; decides what a commit costs")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(
            Path(folder),
            arguments.rounds,
            console,
            session=arguments.session,
            chunk_characters=arguments.chunk,
            replayed_events=arguments.replayed,
        )
    for table in tables(results):
        console.print(table.for_terminal())


if __name__ == "__main__":
    main()
