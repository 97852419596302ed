"""Reads of the read model, in milliseconds: a page of a long thread, and a snapshot of many.

    python benchmarks/reads.py [--folder FOLDER]

The best of many reads of each counts.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

from rich.console import Console
from rich.table import Table
from workload import SAMPLE, seconds, session_events

from peon.orchestration import (
    MessageAppended,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    TurnStarted,
)
from peon.persistence import Database

MESSAGES = 20_000
PAGE = 50
THREADS = 200
EVENTS_A_SESSION = 60


def long_thread(thread_id: UUID) -> list[OrchestrationEvent]:
    """A thread with a turn to every 20 messages."""
    project_id = uuid4()
    events: list[OrchestrationEvent] = [
        ProjectCreated(project_id=project_id, name="tide-table", path="/home/ada/tide-table"),
        ThreadCreated(
            thread_id=thread_id,
            project_id=project_id,
            provider=Provider.CLAUDE,
            model="a-model",
            runtime_mode=RuntimeMode.SUPERVISED,
        ),
    ]
    turn_id = uuid4()
    for number in range(MESSAGES):
        if number % 20 == 0:
            turn_id = uuid4()
            events.append(TurnStarted(turn_id=turn_id, thread_id=thread_id))
        content = TextContent(text=f"{number}: " + "the tide comes in " * 20)
        events.append(
            MessageAppended(
                message_id=uuid4(), turn_id=turn_id, thread_id=thread_id, role=MessageRole.ASSISTANT, content=content
            )
        )
    return events


def best(read: Callable[[], object], times: int) -> float:
    return min(seconds(read) for _ in range(times)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the databases are put")
    arguments = parser.parse_args()
    table = Table("", "ms", "target")
    thread_id = uuid4()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        with Database.open(url=f"sqlite:///{folder}/thread.db") as database:
            database.events.append_all(long_thread(thread_id))
            read = database.read_model.thread_messages
            middle = read(thread_id, limit=MESSAGES // 2)[-1].id
            pages = {
                "the first": lambda: read(thread_id, limit=PAGE),
                "the last": lambda: read(thread_id, limit=PAGE, newest_first=True),
                "from the middle on": lambda: read(thread_id, limit=PAGE, after=middle),
            }
            for which, page in pages.items():
                table.add_row(f"{PAGE} of {MESSAGES:,} messages, {which}", f"{best(page, 200):.2f}", "2")
        with Database.open(url=f"sqlite:///{folder}/snapshot.db") as database:
            database.events.append_all(session_events(SAMPLE, EVENTS_A_SESSION * THREADS))
            snapshot = database.read_model.snapshot()
            contents = f"{len(snapshot.threads)} threads, {len(snapshot.turns)} turns"
            without = best(lambda: database.read_model.snapshot(messages=False), 20)
            table.add_row(f"snapshot of {contents}", f"{without:.1f}", "")
            whole = best(database.read_model.snapshot, 20)
            table.add_row(f"… and their {len(snapshot.messages):,} messages", f"{whole:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
