"""The events that the benchmarks store, and plain `sqlite3` storing the same, to compare with."""

import gc
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter

from peon.orchestration import OrchestrationEvent

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLE = EXAMPLES / "session.jsonl"
sys.path.append(str(EXAMPLES))

TABLES = """
CREATE TABLE events (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    event_type TEXT NOT NULL,
    payload TEXT NOT NULL,
    stored_at TEXT NOT NULL
);
CREATE INDEX idx_events_sequence ON events (sequence);
"""
INSERT = "INSERT INTO events (event_type, payload, stored_at) VALUES (?, ?, ?)"
SELECT = "SELECT sequence, event_type, payload, stored_at FROM events ORDER BY sequence"


STREAMED = 8
"""Characters of text in a chunk of a streaming session: two words or three."""


def session_events(session: Path, count: int, chunk_characters: int = 40) -> list[OrchestrationEvent]:
    """Returns `count` events of a recorded session, played as often as it takes, as new threads of one project."""
    from claude_code_session import SessionReader

    lines = session.read_text(encoding="utf-8").splitlines()
    projects: dict[str, UUID] = {}
    events: list[OrchestrationEvent] = []
    while len(events) < count:
        for batch in SessionReader(projects, chunk_characters).batches(lines):
            events += batch
    return events[:count]


def each(append: Callable[[list[OrchestrationEvent]], object], batches: list[list[OrchestrationEvent]]) -> None:
    for batch in batches:
        append(batch)


def consume(stream: Callable[[], Iterator[object]]) -> None:
    deque(stream(), maxlen=0)


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class PlainStore:
    """What a developer would write by hand: one connection, the same table, the same durability, pydantic."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(TABLES)
        self._adapter: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)

    def append_all(self, events: Sequence[OrchestrationEvent]) -> list[tuple[int, OrchestrationEvent, datetime]]:
        moment = datetime.now(UTC)
        stored_at = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        rows = [(event.type, event.model_dump_json(), stored_at) for event in events]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(INSERT, rows)
        (last,) = self._connection.execute("SELECT last_insert_rowid()").fetchone()
        self._connection.execute("COMMIT")
        first = last - len(events) + 1
        return [(sequence, event, moment) for sequence, event in enumerate(events, first)]

    def stream(self) -> Iterator[tuple[int, OrchestrationEvent, datetime]]:
        for sequence, _, payload, stored_at in self._connection.execute(SELECT):
            yield sequence, self._adapter.validate_json(payload), datetime.fromisoformat(stored_at)

    def replay_all(self) -> list[tuple[int, OrchestrationEvent, datetime]]:
        return list(self.stream())

    def close(self) -> None:
        self._connection.close()
