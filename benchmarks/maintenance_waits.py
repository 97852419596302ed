"""The longest wait of an append while another process works on a large log.

python benchmarks/maintenance_waits.py {rebuild,deletion} sqlite:////tmp/large.db [--messages 1000000] [--rounds 1]

The database is filled if it is empty, and kept: a second run takes less time. After a deletion, begin with another one.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from uuid import uuid4

from rich.console import Console

from peon import AppConfig, Database
from peon.orchestration import (
    MessageAppended,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    ProjectDeleted,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    TurnCompleted,
    TurnStarted,
)

MESSAGES_A_TURN = 10
TURNS_A_THREAD = 100
BATCH_EVENTS = 5_000
PAUSE_SECONDS = 0.005
"""Between two appends: an agent that streams."""

PATIENCE_SECONDS = 600.0
"""How long an append may wait before it fails, so that long waits are measured."""


@dataclass(frozen=True)
class Waits:
    """How long appends took, in seconds: the longest first, and how many there were."""

    longest: list[float]
    appends: int


def session(messages: int) -> Iterator[OrchestrationEvent]:
    """Yields a project with threads whose turns have that many messages in all."""
    project = uuid4()
    yield ProjectCreated(project_id=project, name="large", path="/large")
    text = TextContent(text="a line of text, as agents write many " * 3)
    while messages > 0:
        thread = uuid4()
        yield ThreadCreated(
            thread_id=thread,
            project_id=project,
            provider=Provider.CLAUDE,
            model="model",
            runtime_mode=RuntimeMode.FULL_ACCESS,
        )
        for _ in range(TURNS_A_THREAD):
            turn = uuid4()
            yield TurnStarted(turn_id=turn, thread_id=thread)
            for _ in range(MESSAGES_A_TURN):
                yield MessageAppended(
                    message_id=uuid4(), turn_id=turn, thread_id=thread, role=MessageRole.ASSISTANT, content=text
                )
            yield TurnCompleted(turn_id=turn, thread_id=thread)
            messages -= MESSAGES_A_TURN


def fill(url: str, messages: int) -> None:
    with Database.open(url=url, maintain_projections=False) as database:
        if database.events.last_sequence() == 0:
            events = session(messages)
            while batch := list(islice(events, BATCH_EVENTS)):
                database.events.append_all(batch)
    Database.open(url=url).close()


def rebuild(database: Database) -> None:
    database.projections.rebuild()


def delete(database: Database) -> None:
    """Deletes the project that `fill` has stored, and clears its rows."""
    (large,) = database.read_model.projects(limit=1)
    database.events.append_all([ProjectDeleted(project_id=large.id)])
    database.maintenance.clear_deleted()


WORKS = {"rebuild": rebuild, "deletion": delete}


def append_until_told(url: str, told: Connection) -> None:
    """Appends an event after another, and sends its waits when it is told to end."""
    with Database.open(AppConfig(database={"busy_timeout": PATIENCE_SECONDS}), url=url) as database:
        events = session(1_000_000_000)
        took: list[float] = []
        while not told.poll():
            time.sleep(PAUSE_SECONDS)
            batch = [next(events)]
            began = time.perf_counter()
            database.events.append_all(batch)
            took.append(time.perf_counter() - began)
            if len(took) == 1:
                told.send(None)  # it has begun
        told.recv()
        told.send(Waits(sorted(took, reverse=True)[:10], len(took)))


def measure(url: str, work: Callable[[Database], None]) -> tuple[float, Waits]:
    """Returns the seconds that the work took, and the waits of the appends meanwhile."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=append_until_told, args=(url, theirs))
    process.start()
    ours.recv()
    with Database.open(url=url) as database:
        began = time.perf_counter()
        work(database)
        seconds = time.perf_counter() - began
    ours.send(None)
    waits: Waits = ours.recv()
    process.join()
    return seconds, waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("url")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    console = Console()
    fill(arguments.url, arguments.messages)
    for _ in range(arguments.rounds):
        seconds, waits = measure(arguments.url, WORKS[arguments.work])
        longest = ", ".join(f"{each:.3f}" for each in waits.longest)
        console.print(f"{arguments.work}: {seconds:.0f} s; {waits.appends:,} appends; the longest took {longest} s")


if __name__ == "__main__":
    main()
