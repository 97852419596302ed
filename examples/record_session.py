"""Records a Claude Code session as events, replays the log, and prints what was stored.

    python examples/record_session.py [SESSION.jsonl]

The database is the configured one. Without a file it records the small session beside this script.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path
from uuid import UUID

from claude_code_session import SessionError, SessionReader
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from peon.config import ConfigError
from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    MessageContent,
    OrchestrationEvent,
    ProjectCreated,
    TextContent,
    ThinkingContent,
    ToolCallContent,
)
from peon.persistence import Database, PersistenceError, StoredEvent

SAMPLE = Path(__file__).with_name("session.jsonl")
MESSAGES_SHOWN = 8
CHARACTERS_SHOWN = 100

Log = list[StoredEvent[OrchestrationEvent]]


def record(database: Database, lines: list[str], console: Console) -> int:
    """Returns how many events were stored, each line of the session in a transaction of its own."""
    reader = SessionReader(known_projects(database))
    stored = 0
    steps = track(reader.batches(lines), "Recording", total=len(lines) + 1, console=console, transient=True)
    for events in steps:
        stored += len(database.events.append_all(events))
    return stored


def known_projects(database: Database) -> dict[str, UUID]:
    created = database.events.stream(event_types=["ProjectCreated"])
    return {s.event.path: s.event.project_id for s in created if isinstance(s.event, ProjectCreated)}


def counts_table(log: Log) -> Table:
    table = Table("Event", "Stored", title="The log, replayed", title_justify="left")
    for name, count in Counter(stored.event.type for stored in log).most_common():
        table.add_row(name, f"{count:,}")
    return table


def messages_table(log: Log) -> Table:
    """The last messages, with their chunks put together again."""
    messages: dict[UUID, tuple[int, MessageAppended]] = {}
    chunks: defaultdict[UUID, str] = defaultdict(str)
    for sequence, event, _ in log:
        if isinstance(event, MessageAppended):
            messages[event.message_id] = sequence, event
        elif isinstance(event, MessageChunkReceived):
            chunks[event.message_id] += event.delta
    table = Table("Sequence", "Role", "Kind", "Content", title="The last messages", title_justify="left")
    for sequence, message in list(messages.values())[-MESSAGES_SHOWN:]:
        words = " ".join((shown(message.content) + chunks[message.message_id]).split())
        short = words if len(words) <= CHARACTERS_SHOWN else words[: CHARACTERS_SHOWN - 1] + "…"
        table.add_row(str(sequence), message.role, message.content.type, Text(short))
    return table


def shown(content: MessageContent) -> str:
    match content:
        case TextContent() | ThinkingContent():
            return content.text
        case ToolCallContent():
            return f"{content.name} {content.arguments}"
        case _:
            return str(content.output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a Claude Code session and print what was stored.")
    parser.add_argument("session", nargs="?", type=Path, default=SAMPLE, help="a session file (JSONL)")
    session = parser.parse_args().session
    console = Console()
    try:
        lines = session.read_text(encoding="utf-8").split("\n")
        with Database.open() as database:
            stored = record(database, [line for line in lines if line], console)
            log = database.events.replay_all()
            console.print(f"Stored {stored:,} events of {session.name} in {database.engine.url.database},")
            console.print(f"which now holds {len(log):,}.\n")
    except (ConfigError, PersistenceError, SessionError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"{session}: {error}")
    console.print(counts_table(log), "", messages_table(log))


if __name__ == "__main__":
    main()
