"""How long a database takes to open, and what memory long work takes, with twenty events and with many.

    python benchmarks/open_and_memory.py [--events 1000000] [--folder FOLDER]

Each is measured in a process of its own, after its imports; the best of several openings counts.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from rich.progress import track
from rich.table import Table

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
from peon.persistence import Database

BATCH = 10_000
TURN = 20
"""Events in a turn, one of which is a message, and all but three are chunks of it."""
THREADS = 200
OPENINGS = 9
WORKS = ("stream", "catch_up", "rebuild", "verify")

OPEN = """
import sys, time
from peon.config import AppConfig
from peon.persistence import Database
start = time.perf_counter()
database = Database.open(url=sys.argv[1])
print((time.perf_counter() - start) * 1000)
database.close()
"""

WORK = """
import resource, sys
from peon.persistence import Database
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
with Database.open(url=sys.argv[1], maintain_projections=False) as database:
    before = highest = resident()
    def look(done, total):
        global highest
        highest = max(highest, resident())
    if sys.argv[2] == "stream":
        for number, _ in enumerate(database.events.stream()):
            if number % 10_000 == 0:
                look(number, None)
    else:
        getattr(database.projections, sys.argv[2])(look)
print((highest - before) / 1e6)
"""


def streaming_turns(count: int) -> Iterator[OrchestrationEvent]:
    """Yields about `count` events: a project with `THREADS` threads, and turns in one after the other."""
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
    for number in range(count // TURN):
        place = {"turn_id": uuid4(), "thread_id": threads[number % THREADS]}
        message_id = uuid4()
        yield TurnStarted(**place)
        yield MessageAppended(message_id=message_id, role=MessageRole.ASSISTANT, content=TextContent(text=""), **place)
        for _ in range(TURN - 3):
            yield MessageChunkReceived(message_id=message_id, delta="the tide comes in at four", **place)
        yield TurnCompleted(**place)


def measure(script: str, *arguments: str) -> float:
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return float(result.stdout)


def fill(url: str, count: int, console: Console) -> None:
    with Database.open(url=url, maintain_projections=False) as database:
        events = streaming_turns(count)
        for _ in track(range(0, count, BATCH), f"Filling with {count:,}", console=console, transient=True):
            database.events.append_all(islice(events, BATCH))
        database.events.append_all(events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the databases are put")
    arguments = parser.parse_args()
    console = Console()
    table = Table("", "messages", "open, ms", *(f"{work}, MB" for work in WORKS))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count in (TURN, arguments.events):
            url = f"sqlite:///{folder}/{count}.db"
            fill(url, count, console)
            with console.status(f"Measuring with {count:,} events"):
                memory = [f"{measure(WORK, url, work):.1f}" for work in WORKS]
                opened = min(measure(OPEN, url) for _ in range(OPENINGS))
            table.add_row(f"{count:,} events", f"{count // TURN:,}", f"{opened:.1f}", *memory)
    console.print("Targets with a million events: 20 ms to open, with projections; 30 MB added by stream().")
    console.print(table)


if __name__ == "__main__":
    main()
