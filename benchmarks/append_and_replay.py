"""The log alone: events a second, and the ratio to plain `sqlite3` doing the same, in interleaved rounds.

    python benchmarks/append_and_replay.py [--session SESSION.jsonl] [--rounds 40] [--folder FOLDER]

The best round of each counts: these are short, and what disturbs a machine only ever makes them slower.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from workload import SAMPLE, PlainStore, consume, each, seconds, session_events

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database

TOGETHER = "append, 1 each, 16 threads"
TARGETS: dict[int | str, float] = {1: 0.85, 10: 0.85, 1_000: 0.95, TOGETHER: 3.0, "stream": 0.95, "replay_all": 1.0}
COMMITS = {1: 200, 10: 60, 1_000: 2}
THREADS = 16
"""Commits in a round of each batch size: short enough for a round to go undisturbed."""


def together(append: Callable[[list[OrchestrationEvent]], object], batches: list[list[OrchestrationEvent]]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [batches[thread::THREADS] for thread in range(THREADS)]
        deque(pool.map(partial(each, append), parts), maxlen=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", type=Path, default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--replayed", type=int, default=20_000, help="events in the log that is replayed")
    parser.add_argument("--folder", type=Path, help="where the databases are put; decides what a commit costs")
    arguments = parser.parse_args()
    console = Console()

    events = session_events(arguments.session, arguments.replayed)
    payload = sum(len(event.model_dump_json()) for event in events) / len(events)
    best: dict[tuple[int | str, str], float] = {}

    def note(what: int | str, who: str, rate: float) -> None:
        best[what, who] = max(best.get((what, who), 0.0), rate)

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        stores: dict[int | str, tuple[PlainStore, Database]] = {}
        for what in TARGETS:
            plain = PlainStore(Path(folder, f"plain-{what}.db"))
            database = Database.open(url=f"sqlite:///{folder}/peon-{what}.db", maintain_projections=False)
            stores[what] = plain, database
            if isinstance(what, str):
                for start in range(0, len(events), 10):  # as a session would leave them
                    plain.append_all(events[start : start + 10])
                    database.events.append_all(events[start : start + 10])
        for turn in track(range(arguments.rounds), "Measuring", console=console, transient=True):
            for size, commits in COMMITS.items():
                plain, database = stores[size]
                start = turn * size * commits % max(1, len(events) - size * commits)
                batches = [events[at : at + size] for at in range(start, start + size * commits, size)]
                for who, append in (("plain", plain.append_all), ("peon", database.events.append_all)):
                    note(size, who, size * commits / seconds(partial(each, append, batches)))
            plain, database = stores[TOGETHER]
            batches = [[event] for event in events[: 50 * THREADS]]
            note(TOGETHER, "plain", len(batches) / seconds(partial(each, plain.append_all, batches)))
            note(TOGETHER, "peon", len(batches) / seconds(partial(together, database.events.append_all, batches)))
            plain, database = stores["stream"]
            for who, stream in (("plain", plain.stream), ("peon", database.events.stream)):
                note("stream", who, len(events) / seconds(partial(consume, stream)))
            plain, database = stores["replay_all"]
            for who, replay in (("plain", plain.replay_all), ("peon", database.events.replay_all)):
                note("replay_all", who, len(events) / seconds(replay))
        for plain, database in stores.values():
            plain.close()
            database.close()

    table = Table("", "plain sqlite3", "peon", "ratio", "target")
    for what, target in TARGETS.items():
        ours, theirs = best[what, "peon"], best[what, "plain"]
        label = f"append, {what:,} a commit" if isinstance(what, int) else what
        table.add_row(label, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}", f"{target:.2f}")
    console.print(
        f"Events a second, best of {arguments.rounds} rounds; payloads of {payload:,.0f} characters on average,"
        " synchronous=FULL."
    )
    console.print(table)


if __name__ == "__main__":
    main()
