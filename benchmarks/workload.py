"""The events that the benchmarks store, plain `sqlite3` as the baseline, and a stopwatch.

Imports nothing but `peon.orchestration` from the package, because compare.py runs it against other checkouts.
"""

import gc
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from uuid import UUID, uuid4

from pydantic import TypeAdapter

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnCompleted,
    TurnStarted,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLE = EXAMPLES / "session.jsonl"
sys.path.append(str(EXAMPLES))

RECORDED_CHUNK_CHARACTERS = 40
"""Characters of text in a chunk of the recorded session: chunks are a third of its events."""

STREAMED_CHUNK_CHARACTERS = 8
"""Characters of text in a chunk of a streaming session: two or three words, as models stream them."""

TURN_MESSAGES = 20
"""Messages in a turn of the long thread."""

MESSAGES_BETWEEN_ENDS = 10
"""Messages in a turn of many threads: a question, and nine calls and results of tools; the last call has no result."""

SESSION_COMMIT_EVENTS = 10
"""Events a commit when a log is filled for reading, so that its pages lie in the file as a session leaves them."""

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

Append = Callable[[list[OrchestrationEvent]], object]
Stored = tuple[int, OrchestrationEvent, datetime]


def endless_session(
    session: Path = SAMPLE, chunk_characters: int = RECORDED_CHUNK_CHARACTERS
) -> Iterator[OrchestrationEvent]:
    """Yields the events of a recorded session again and again, each time as new threads of one project."""
    from claude_code_session import SessionReader

    lines = session.read_text(encoding="utf-8").splitlines()
    projects: dict[str, UUID] = {}
    while True:
        for batch in SessionReader(projects, chunk_characters).batches(lines):
            yield from batch


def session_events(
    session: Path, count: int, chunk_characters: int = RECORDED_CHUNK_CHARACTERS
) -> list[OrchestrationEvent]:
    return list(islice(endless_session(session, chunk_characters), count))


def long_thread(thread_id: UUID, messages: int) -> Iterator[OrchestrationEvent]:
    """Yields the events of a project with one thread."""
    project_id = uuid4()
    yield ProjectCreated(project_id=project_id, name="tide-table", path="/home/ada/tide-table")
    yield ThreadCreated(
        thread_id=thread_id,
        project_id=project_id,
        provider=Provider.CLAUDE,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
    )
    turn_id = uuid4()
    for number in range(messages):
        if number % TURN_MESSAGES == 0:
            turn_id = uuid4()
            yield TurnStarted(turn_id=turn_id, thread_id=thread_id)
        content = TextContent(text=f"{number}: " + "the tide comes in " * 20)
        yield MessageAppended(
            message_id=uuid4(), turn_id=turn_id, thread_id=thread_id, role=MessageRole.ASSISTANT, content=content
        )


def many_threads(threads: int, messages: int) -> Iterator[OrchestrationEvent]:
    """Yields the events of many threads in ten projects; every hundredth is left in the middle of its last turn.

    Each message of the agent calls a tool. The message after it is the result.
    """
    projects = [uuid4() for _ in range(10)]
    for project_id in projects:
        yield ProjectCreated(project_id=project_id, name="tide-table", path="/home/ada/tide-table")
    for number in range(threads):
        thread_id = uuid4()
        yield ThreadCreated(
            thread_id=thread_id,
            project_id=projects[number % 10],
            provider=Provider.CLAUDE,
            model="a-model",
            runtime_mode=RuntimeMode.SUPERVISED,
        )
        yield from _turns_with_tools(thread_id, messages // threads, complete=number % 100 != 0)


def _turns_with_tools(thread_id: UUID, messages: int, *, complete: bool) -> Iterator[OrchestrationEvent]:
    for start in range(0, messages, MESSAGES_BETWEEN_ENDS):
        turn = {"turn_id": uuid4(), "thread_id": thread_id}
        yield TurnStarted(**turn)
        question = TextContent(text="When does the tide come in? " * 10)
        yield MessageAppended(message_id=uuid4(), role=MessageRole.USER, content=question, **turn)
        for number in range(1, MESSAGES_BETWEEN_ENDS):
            call = f"call-{start + (number - 1) // 2}"
            content = (
                ToolCallContent(tool_call_id=call, name="read", arguments={"path": "tides.csv", "lines": number})
                if number % 2
                else ToolResultContent(tool_call_id=call, output="the tide comes in " * 20, is_error=False)
            )
            role = MessageRole.ASSISTANT if number % 2 else MessageRole.TOOL
            yield MessageAppended(message_id=uuid4(), role=role, content=content, **turn)
        if complete or start + MESSAGES_BETWEEN_ENDS < messages:
            yield TurnCompleted(**turn)
        else:
            yield ApprovalRequested(approval_id=uuid4(), action="write", detail={"path": "tides.csv"}, **turn)
            yield ThreadStatusChanged(thread_id=thread_id, status=ThreadStatus.AWAITING_APPROVAL)


def payload_characters(events: Sequence[OrchestrationEvent]) -> float:
    """Returns the average length of a payload as JSON."""
    return sum(len(event.model_dump_json()) for event in events) / len(events)


def batches_of(events: Sequence[OrchestrationEvent], size: int) -> list[list[OrchestrationEvent]]:
    return [list(events[start : start + size]) for start in range(0, len(events), size)]


def some_batches(
    events: Sequence[OrchestrationEvent], size: int, count: int, turn: int
) -> list[list[OrchestrationEvent]]:
    """Returns `count` batches, other ones each turn; begins again at the first event when all were used."""
    start = turn * size * count % max(1, len(events) - size * count)
    return batches_of(events[start : start + size * count], size)


def append_each(append: Append, batches: Sequence[list[OrchestrationEvent]]) -> None:
    for batch in batches:
        append(batch)


def append_from_threads(append: Append, batches: Sequence[list[OrchestrationEvent]], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        shares = [batches[thread::threads] for thread in range(threads)]
        deque(pool.map(partial(append_each, append), shares), maxlen=0)


def consume(stream: Callable[[], Iterator[object]]) -> None:
    """Reads a stream to its end and keeps nothing."""
    deque(stream(), maxlen=0)


def seconds(work: Callable[[], object]) -> float:
    """Returns how long `work` takes. Collects garbage first, so that `work` does not pay for what came before."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class PlainStore:
    """The SQLite baseline: one connection, the same table, the same durability, pydantic in and out."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(TABLES)
        self._adapter: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)

    def append_all(self, events: Sequence[OrchestrationEvent]) -> list[Stored]:
        moment = datetime.now(UTC)
        stored_at = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        rows = [(event.type, event.model_dump_json(), stored_at) for event in events]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(INSERT, rows)
        (last,) = self._connection.execute("SELECT last_insert_rowid()").fetchone()
        self._connection.execute("COMMIT")
        first = last - len(events) + 1
        return [(sequence, event, moment) for sequence, event in enumerate(events, first)]

    def stream(self) -> Iterator[Stored]:
        for sequence, _, payload, stored_at in self._connection.execute(SELECT):
            yield sequence, self._adapter.validate_json(payload), datetime.fromisoformat(stored_at)

    def replay_all(self) -> list[Stored]:
        return list(self.stream())

    def close(self) -> None:
        self._connection.close()
