"""Reads of the read model, in milliseconds: a page of a long thread, and a snapshot of many threads.

python benchmarks/reads.py [--folder FOLDER]
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from tables import Table, target_text
from workload import SAMPLE, long_thread, seconds, session_events

from peon import Database

PAGE_MESSAGES = 50
PAGE_TARGET_MS = 2.0
PAGE_READS = 200
THREAD_MESSAGES = 20_000

SNAPSHOT_EVENTS = 12_000
"""About 200 threads of the sample session."""

SNAPSHOT_READS = 20


@dataclass(frozen=True)
class Read:
    """The shortest of several identical reads."""

    name: str
    milliseconds: float
    target: float | None = None

    @property
    def reached(self) -> bool:
        return self.target is None or self.milliseconds <= self.target


def shortest_ms(read: Callable[[], object], times: int) -> float:
    return min(seconds(read) for _ in range(times)) * 1_000


def measure(folder: Path, console: Console, *, thread_messages: int = THREAD_MESSAGES) -> list[Read]:
    results = []
    thread_id = uuid4()
    with console.status("Reading pages"), Database.open(url=f"sqlite:///{folder}/thread.db") as database:
        database.events.append_all(long_thread(thread_id, thread_messages))
        read = database.read_model.thread_messages
        middle = read(thread_id, limit=thread_messages // 2)[-1].id
        pages = {
            "the first": partial(read, thread_id, limit=PAGE_MESSAGES),
            "the last": partial(read, thread_id, limit=PAGE_MESSAGES, newest_first=True),
            "from the middle": partial(read, thread_id, limit=PAGE_MESSAGES, after=middle),
        }
        for which, page in pages.items():
            name = f"{PAGE_MESSAGES} of {thread_messages:,} messages of a thread, {which}"
            results.append(Read(name, shortest_ms(page, PAGE_READS), PAGE_TARGET_MS))
    with console.status("Reading snapshots"), Database.open(url=f"sqlite:///{folder}/snapshot.db") as database:
        database.events.append_all(session_events(SAMPLE, SNAPSHOT_EVENTS))
        snapshot = database.read_model.snapshot()
        content = f"{len(snapshot.threads):,} threads and {len(snapshot.turns):,} turns"
        without = shortest_ms(partial(database.read_model.snapshot, messages=False), SNAPSHOT_READS)
        results.append(Read(f"`snapshot(messages=False)`: {content}", without))
        whole = shortest_ms(database.read_model.snapshot, SNAPSHOT_READS)
        results.append(Read(f"`snapshot()`: the same and {len(snapshot.messages):,} messages", whole))
    return results


def table(results: list[Read]) -> Table:
    rows = [
        (result.name, f"{result.milliseconds:.2f}", target_text(result.target, result.reached, "≤"))
        for result in results
    ]
    return Table(("read", "ms", "target"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the databases are created")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        console.print(table(measure(Path(folder), console)).for_terminal())


if __name__ == "__main__":
    main()
