"""Reads of the read model, in milliseconds: a page of a long thread, lists over many threads, and snapshots.

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
from workload import SAMPLE, batches_of, long_thread, many_threads, seconds, session_events

from peon import Database

PAGE_MESSAGES = 50
PAGE_TARGET_MS = 2.0
PAGE_READS = 200
THREAD_MESSAGES = 20_000

PAGE_THREADS = 50
LISTED_THREADS = 2_000
LISTED_MESSAGES = 100_000

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


def measure_lists(url: str) -> list[Read]:
    """Measures the lists of 2,000 threads with 100,000 messages. The database must be empty."""
    with Database.open(url=url) as database:
        for batch in batches_of(list(many_threads(LISTED_THREADS, LISTED_MESSAGES)), 1_000):
            database.events.append_all(batch)
        state = database.read_model
        newest = state.thread_summaries(limit=LISTED_THREADS)
        project_id, thread_id, turn = newest[0].project_id, newest[0].id, state.running_turns()[0]
        middle = newest[len(newest) // 2].last_sequence
        lists: dict[str, Callable[[], object]] = {
            "thread_summaries(limit=50)": partial(state.thread_summaries, limit=PAGE_THREADS),
            "the same from the middle": partial(state.thread_summaries, limit=PAGE_THREADS, after=middle),
            "the same of one project": partial(state.thread_summaries, project_id, limit=PAGE_THREADS),
            "running_turns()": state.running_turns,
            "pending_approvals()": state.pending_approvals,
            "unanswered_tool_calls(…) of a thread": partial(state.unanswered_tool_calls, thread_id),
            "unanswered_tool_calls(…) of a turn": partial(state.unanswered_tool_calls, turn.thread_id, turn_id=turn.id),
            "unfinished_work()": state.unfinished_work,
        }
        return [Read(f"`{name}`", shortest_ms(read, PAGE_READS), PAGE_TARGET_MS) for name, read in lists.items()]


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
    with console.status("Reading lists"):
        results += measure_lists(f"sqlite:///{folder}/lists.db")
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
