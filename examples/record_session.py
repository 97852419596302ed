"""Records a Claude Code session as events, and prints the state that follows from all recorded events.

    python examples/record_session.py [SESSION.jsonl]

The database is the configured one. Without a file it records the small session beside this script.
"""

import argparse
import sys
from pathlib import Path

from claude_code_session import SessionError, SessionReader
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from rich.text import Text

from peon.config import ConfigError
from peon.orchestration import Message, TextContent, ThinkingContent, ToolCallContent
from peon.persistence import Database, PersistenceError, ReadModel

SAMPLE = Path(__file__).with_name("session.jsonl")
THREADS_SHOWN = 5
TURNS_SHOWN = 5
MESSAGES_SHOWN = 8
CHARACTERS_SHOWN = 100


def open_database(console: Console) -> Database:
    """Opens the database, and shows progress if projections have to catch up first."""
    bar = Progress(console=console, transient=True)

    def report(done: int, total: int) -> None:
        if not bar.tasks:
            bar.start()
            bar.add_task("Catching up")
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        return Database.open(progress=report)
    finally:
        bar.stop()


def record(database: Database, lines: list[str], console: Console) -> int:
    """Stores each line of the session in a transaction of its own, and returns the number of events."""
    reader = SessionReader({project.path: project.id for project in database.read_model.projects()})
    stored = 0
    steps = track(reader.batches(lines), "Recording", total=len(lines) + 1, console=console, transient=True)
    for events in steps:
        stored += len(database.events.append_all(events))
    return stored


def tables(state: ReadModel) -> list[Table]:
    """Prints the projects with their newest threads, and the last turns and messages of the selected thread."""
    projects = Table("Name", "Path", "Threads", title="Projects", title_justify="left")
    threads = Table("Project", "Created", "Model", "Mode", "Status", title="The newest threads", title_justify="left")
    for project in state.projects():
        newest = state.threads(project.id, newest_first=True)
        projects.add_row(Text(project.name), Text(project.path), f"{len(newest):,}")
        for thread in newest[:THREADS_SHOWN]:
            created = f"{thread.created_at:%F %T}"
            threads.add_row(Text(project.name), created, thread.model, thread.runtime_mode, thread.status)
    turns = Table("Started", "Status", "Messages", title="The last turns of this thread", title_justify="left")
    messages = Table("Role", "Kind", "Content", title="Its last messages", title_justify="left")
    if selected := state.selected_thread():
        for turn in reversed(state.turns(selected.id, limit=TURNS_SHOWN, newest_first=True)):
            turns.add_row(f"{turn.started_at:%F %T}", turn.status, f"{len(state.messages(turn.id)):,}")
        for message in reversed(state.thread_messages(selected.id, limit=MESSAGES_SHOWN, newest_first=True)):
            words = " ".join(shown(message).split())
            short = words if len(words) <= CHARACTERS_SHOWN else words[: CHARACTERS_SHOWN - 1] + "…"
            messages.add_row(message.role, message.content.type, Text(short))
    return [projects, threads, turns, messages]


def shown(message: Message) -> str:
    match message.content:
        case TextContent(text=text) | ThinkingContent(text=text):
            return text
        case ToolCallContent(name=name, arguments=arguments):
            return f"{name} {arguments}"
        case result:
            return str(result.output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a Claude Code session and print the state.")
    parser.add_argument("session", nargs="?", type=Path, default=SAMPLE, help="a session file (JSONL)")
    session = parser.parse_args().session
    console = Console()
    try:
        lines = session.read_text(encoding="utf-8").split("\n")
        with open_database(console) as database:
            stored = record(database, [line for line in lines if line], console)
            console.print(f"Stored {stored:,} events of {session.name} in {database.engine.url.database},")
            console.print(f"which now holds {database.events.last_sequence():,}.")
            for table in tables(database.read_model):
                console.print("", table)
    except (ConfigError, PersistenceError, SessionError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"{session}: {error}")


if __name__ == "__main__":
    main()
