"""How long a database takes to open, and how much memory long work adds, with few events and with many.

    python benchmarks/open_and_memory.py [--events 1000000] [--folder FOLDER]

Each figure comes from its own process, see open_and_memory_process.py, and counts from the end of its imports.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import uuid4

from open_and_memory_process import WORKS
from rich.console import Console
from rich.progress import track
from tables import Table, target_text

from peon import Database
from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    TurnCompleted,
    TurnStarted,
)

PROCESS = Path(__file__).with_name("open_and_memory_process.py")
OPEN_TARGET_MS = 20.0
STREAM_TARGET_MB = 30.0

FEW_EVENTS = 20
MANY_EVENTS = 1_000_000
FILL_BATCH_EVENTS = 10_000
TURN_EVENTS = 20
"""Events in a turn: its start and end, one message, and chunks of that message."""

THREADS = 200
OPENINGS = 9


@dataclass(frozen=True)
class LongLog:
    """A log of so many events: the shortest of several openings, and the memory that each work adds at most."""

    events: int
    messages: int
    open_ms: float
    added_mb: dict[str, float]


def streaming_turns(count: int) -> Iterator[OrchestrationEvent]:
    """Yields about `count` events: a project with `THREADS` threads, and their turns."""
    project_id = uuid4()
    threads = [uuid4() for _ in range(THREADS)]
    yield ProjectCreated(project_id=project_id, name="tide-table", path="/home/ada/tide-table")
    for thread_id in threads:
        yield ThreadCreated(
            thread_id=thread_id,
            project_id=project_id,
            provider=Provider.CLAUDE,
            model="a-model",
            runtime_mode=RuntimeMode.SUPERVISED,
        )
    for number in range(count // TURN_EVENTS):
        place = {"turn_id": uuid4(), "thread_id": threads[number % THREADS]}
        message_id = uuid4()
        yield TurnStarted(**place)
        yield MessageAppended(message_id=message_id, role=MessageRole.ASSISTANT, content=TextContent(text=""), **place)
        for _ in range(TURN_EVENTS - 3):
            yield MessageChunkReceived(message_id=message_id, delta="the tide comes in at four", **place)
        yield TurnCompleted(**place)


def fill(url: str, count: int, console: Console) -> None:
    with Database.open(url=url, maintain_projections=False) as database:
        events = streaming_turns(count)
        name = f"Filling with {count:,} events"
        for _ in track(range(0, count, FILL_BATCH_EVENTS), name, console=console, transient=True):
            database.events.append_all(islice(events, FILL_BATCH_EVENTS))
        database.events.append_all(events)


def run_process(work: str, url: str) -> float:
    command = [sys.executable, str(PROCESS), work, url]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(folder: Path, console: Console, *, many_events: int = MANY_EVENTS) -> list[LongLog]:
    results = []
    for count in (FEW_EVENTS, many_events):
        url = f"sqlite:///{folder}/{count}.db"
        fill(url, count, console)
        added = {}
        for work in WORKS:
            with console.status(f"{work} with {count:,} events"):
                added[work] = run_process(work, url)
        with console.status(f"Opening with {count:,} events"):
            opened = min(run_process("open", url) for _ in range(OPENINGS))
        results.append(LongLog(count, count // TURN_EVENTS, opened, added))
    return results


def table(results: list[LongLog]) -> Table:
    rows: list[tuple[str, ...]] = []
    openings = [result.open_ms for result in results]
    target = target_text(OPEN_TARGET_MS, max(openings) <= OPEN_TARGET_MS, "≤", " ms")
    rows.append(("`Database.open()`", *(f"{opened:.1f} ms" for opened in openings), target))
    for work in WORKS:
        added = [result.added_mb[work] for result in results]
        target = ""
        if work == "stream":
            target = target_text(STREAM_TARGET_MB, max(added) <= STREAM_TARGET_MB, "≤", " MB")
        rows.append((f"memory that `{work}` adds", *(f"{memory:.1f} MB" for memory in added), target))
    return Table(("", *(f"{result.events:,} events" for result in results), "target"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=MANY_EVENTS)
    parser.add_argument("--folder", type=Path, help="where the databases are created")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        console.print(table(measure(Path(folder), console, many_events=arguments.events)).for_terminal())


if __name__ == "__main__":
    main()
