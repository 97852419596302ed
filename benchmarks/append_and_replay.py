"""The log alone on SQLite: events a second, and the ratio to plain `sqlite3` in interleaved rounds.

python benchmarks/append_and_replay.py [--session SESSION.jsonl] [--rounds 40] [--folder FOLDER]
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from comparison import BestRates, Comparison, comparison_table
from rich.console import Console
from rich.progress import track
from workload import (
    SAMPLE,
    SESSION_COMMIT_EVENTS,
    PlainStore,
    append_each,
    append_from_threads,
    batches_of,
    consume,
    payload_characters,
    session_events,
    some_batches,
)

from peon import Database
from peon.orchestration import OrchestrationEvent

BASELINE = "plain sqlite3"
APPEND_TARGETS = {1: 0.85, 10: 0.85, 1_000: 0.95}
STREAM_TARGET = 0.95
REPLAY_ALL_TARGET = 1.0

COMMITS = {1: 200, 10: 60, 1_000: 2}
"""Commits in a round of each batch size: few enough that many rounds run undisturbed."""

THREADS = 16
THREADS_TARGET = 3.0
COMMITS_PER_THREAD = 50
THREADS_NAME = f"append, 1 a commit, {THREADS} threads (baseline: one thread)"

REPLAYED_EVENTS = 20_000
"""Events in the log that is read: enough that opening the read does not count."""


def append_name(size: int) -> str:
    return f"append, {size:,} a commit"


def measure(folder: Path, events: list[OrchestrationEvent], rounds: int, console: Console) -> list[Comparison]:
    """Measures appends and reads of the log.

    Args:
        folder: Where the databases are created. Its disk decides what a commit costs.
        events: Stored in the log that is read; parts of them are appended in each round.
    """
    best = BestRates()
    with ExitStack() as stack:

        def open_stores(name: str, stored: Sequence[OrchestrationEvent] = ()) -> tuple[PlainStore, Database]:
            plain = stack.enter_context(closing(PlainStore(folder / f"plain-{name}.db")))
            url = f"sqlite:///{folder}/peon-{name}.db"
            database = stack.enter_context(Database.open(url=url, maintain_projections=False))
            for batch in batches_of(stored, SESSION_COMMIT_EVENTS):
                plain.append_all(batch)
                database.events.append_all(batch)
            return plain, database

        appended = {size: open_stores(str(size)) for size in COMMITS}
        threaded = open_stores("threads", events)
        replayed = open_stores("replay", events)
        single = batches_of(events[: COMMITS_PER_THREAD * THREADS], 1)

        for turn in track(range(rounds), "Appending and replaying", console=console, transient=True):
            for size, commits in COMMITS.items():
                plain, database = appended[size]
                batches = some_batches(events, size, commits, turn)
                count, name = sum(map(len, batches)), append_name(size)
                best.measure(name, "baseline", count, partial(append_each, plain.append_all, batches))
                best.measure(name, "peon", count, partial(append_each, database.events.append_all, batches))
            plain, database = threaded
            best.measure(THREADS_NAME, "baseline", len(single), partial(append_each, plain.append_all, single))
            appends = partial(append_from_threads, database.events.append_all, single, THREADS)
            best.measure(THREADS_NAME, "peon", len(single), appends)
            plain, database = replayed
            best.measure("stream", "baseline", len(events), partial(consume, plain.stream))
            best.measure("stream", "peon", len(events), partial(consume, database.events.stream))
            best.measure("replay_all", "baseline", len(events), plain.replay_all)
            best.measure("replay_all", "peon", len(events), database.events.replay_all)
    return [
        *(best.comparison(append_name(size), target) for size, target in APPEND_TARGETS.items()),
        best.comparison(THREADS_NAME, THREADS_TARGET),
        best.comparison("stream", STREAM_TARGET),
        best.comparison("replay_all", REPLAY_ALL_TARGET),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", type=Path, default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--replayed", type=int, default=REPLAYED_EVENTS, help="events in the log that is read")
    parser.add_argument("--folder", type=Path, help="where the databases are created; decides what a commit costs")
    arguments = parser.parse_args()
    console = Console()
    events = session_events(arguments.session, arguments.replayed)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), events, arguments.rounds, console)
    console.print(
        f"Best of {arguments.rounds} rounds, synchronous=FULL, {payload_characters(events):,.0f} characters a payload."
    )
    console.print(comparison_table(results, BASELINE).for_terminal())


if __name__ == "__main__":
    main()
