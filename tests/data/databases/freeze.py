"""Creates the frozen database of the newest revision: `python tests/data/databases/freeze.py`."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

from alembic import command
from alembic.config import Config

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    MessageAppended,
    MessageChunkReceived,
    OrchestrationEvent,
    ProjectCreated,
    ProjectRenamed,
    ThreadCreated,
    ThreadStatusChanged,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from peon.orchestration.model import (
    MessageRole,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadStatus,
    ToolCallContent,
    ToolResultContent,
)
from peon.persistence import EventStore
from peon.persistence.backends.engine import create_engine
from peon.persistence.migrations import alembic_folder, migration_transaction, revisions

MOMENT = "2026-01-31T23:59:59.000001Z"
LATER = "2026-02-01T00:00:00.000000Z"


def a_story(project: UUID, thread: UUID, turn: UUID, failed: UUID, checkpoint: UUID) -> list[OrchestrationEvent]:
    approvals = uuid4(), uuid4()
    in_turn = {"turn_id": turn, "thread_id": thread}
    return [
        ProjectCreated(project_id=project, name="Gezeitentafel, 潮汐表 🌊", path="/home/ada/tide-table"),
        ProjectRenamed(project_id=project, name='it\'s "tide\\table"\n'),
        ThreadCreated(
            thread_id=thread,
            project_id=project,
            provider=Provider.CLAUDE,
            model="a-model",
            runtime_mode=RuntimeMode.SUPERVISED,
        ),
        ThreadStatusChanged(thread_id=thread, status=ThreadStatus.RUNNING),
        TurnStarted(**in_turn),
        MessageAppended(
            message_id=uuid4(), role=MessageRole.USER, content=TextContent(text="Ebbe?\u2028Ça va\x00"), **in_turn
        ),
        MessageAppended(
            message_id=uuid4(),
            role=MessageRole.ASSISTANT,
            content=ToolCallContent(
                tool_call_id="call-1", name="read", arguments={"lines": [1, 2.5, 10**30], "é": None, "": {"a": True}}
            ),
            **in_turn,
        ),
        MessageAppended(
            message_id=uuid4(),
            role=MessageRole.TOOL,
            content=ToolResultContent(tool_call_id="call-1", output=["4.2 m", -0.0], is_error=False),
            **in_turn,
        ),
        MessageChunkReceived(message_id=uuid4(), delta="", **in_turn),
        ApprovalRequested(approval_id=approvals[0], action="write", detail={"path": "tides.csv"}, **in_turn),
        ActionApproved(approval_id=approvals[0], **in_turn),
        ApprovalRequested(approval_id=approvals[1], action="delete", detail=None, **in_turn),
        ActionRejected(approval_id=approvals[1], reason="no", **in_turn),
        CheckpointCreated(checkpoint_id=checkpoint, git_ref="refs/peon/1", **in_turn),
        ChangesCommitted(thread_id=thread, commit="0" * 40, message="Adds the tides"),
        BranchCreated(thread_id=thread, name="tides"),
        BranchPushed(thread_id=thread, name="tides", remote="origin"),
        TurnCompleted(**in_turn),
        TurnStarted(turn_id=failed, thread_id=thread),
        TurnFailed(turn_id=failed, thread_id=thread, error="the provider hung up"),
        ThreadStatusChanged(thread_id=thread, status=ThreadStatus.ERROR, error="the provider hung up"),
    ]


def rows_of_other_tables(
    project: str, thread: str, turn: str, failed: str, checkpoint: str
) -> dict[str, list[tuple[str | int | None, ...]]]:
    titled, running, message = str(uuid4()), str(uuid4()), str(uuid4())
    text = '{"type":"text","text":"Ebbe?"}'
    first_agent, second_agent = ("claude", "a-model", "supervised"), ("codex", "another", "full_access")
    return {
        "projection_projects": [
            (project, "Gezeitentafel, 潮汐表 🌊", "/home/ada/tide-table", MOMENT, 1),
            (str(uuid4()), "", "/", MOMENT, 2),
        ],
        "projection_threads": [
            (thread, project, None, *first_agent, "error", "it hung up", MOMENT, LATER, 3, 17, 2, 2, "Ebbe?"),
            (titled, project, "Ein Titel", *second_agent, "idle", None, MOMENT, MOMENT, 4, 7, 1, 0, None),
        ],
        "projection_turns": [
            (turn, thread, "completed", None, MOMENT, LATER, 5),
            (failed, thread, "failed", "the provider hung up", MOMENT, LATER, 6),
            (running, titled, "running", None, MOMENT, None, 7),
        ],
        "projection_messages": [
            (message, turn, "user", text, MOMENT, 8, thread),
            (str(uuid4()), turn, "tool", text, LATER, 9, thread),
        ],
        "projection_message_chunks": [(running, message, 10, '"Ça va\\u0000"'), (running, message, 2**40, '""')],
        "projection_open_tool_calls": [(thread, 9, turn, message, "1"), (titled, 2**40, running, message, "größe")],
        "checkpoints": [
            (checkpoint, thread, turn, "refs/peon/1", MOMENT, 11, None),
            (str(uuid4()), thread, turn, "refs/peon/2", MOMENT, 12, LATER),
        ],
        "projection_approvals": [
            (str(uuid4()), thread, turn, "write", '{"path": "é"}', "pending", None, MOMENT, None, 13),
            (str(uuid4()), thread, turn, "delete", "null", "rejected", "nein", MOMENT, LATER, 14),
        ],
        "projection_commits": [(15, thread, "0" * 40, "Adds the tides 🌊", MOMENT)],
        "projection_branches": [
            (thread, "tides", MOMENT, "origin", LATER, 16),
            (thread, "größe", None, None, None, 17),
        ],
        "projection_selected_thread": [(1, titled)],
        "projection_deletions": [("thread", str(uuid4()), 17), ("turn", str(uuid4()), 2**40)],
        "projection_positions": [("orchestration", 1, 17)],
        "projection_problems": [("orchestration", 9, "MessageChunkReceived", "there is no message")],
        "tags": [(1, "type", "ProjectCreated"), (2, "thread_id", thread), (3, "größe", "ein\u2028Wert")],
        "event_tags": [(1, 1), (2, 3), (2, 2**40)],
        "tag_positions": [("type", 17), ("thread_id", 0)],
        "command_receipts": [(str(uuid4()), 1, 5, MOMENT), (str(uuid4()), 0, 0, LATER)],
        "subscription_positions": [("mailer", 17, MOMENT), ("größe ☃", 0, LATER)],
        "merged_events": [(2**40, 3, MOMENT), (2**40 + 3, 2, LATER)],
        "removed_events": [(2**40 - 2, 2**40 - 1, "compaction", MOMENT), (2**40 + 2, 2**40 + 2, "compaction", LATER)],
        "redactions": [
            (1, MOMENT, "ada", '[{"thread_id":"größe"}]', "peon.orchestration.redaction.redacted", 2),
            (2, LATER, "", "[{}]", "rule", 2**40),
        ],
        "redacted_events": [(3, 1), (2**40 + 4, 2)],
        "settings": [("theme", '"dark"'), ("größe ☃", '{"länge": "𝄞"}'), ("empty", "")],
    }


def freeze(revision: str) -> Path:
    path = Path(__file__).with_name(f"{revision}.db")
    if path.exists():
        raise SystemExit(f"{path} exists: a frozen database is never changed")
    engine = create_engine(f"sqlite:///{path}")
    config = Config(str(alembic_folder() / "alembic.ini"))
    with migration_transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    project, thread, turn, failed, checkpoint = (uuid4() for _ in range(5))
    store = EventStore(engine)
    story = a_story(project, thread, turn, failed, checkpoint)
    store.append_all(story[:5])
    store.append_all(story[5:])
    rows = rows_of_other_tables(*map(str, (project, thread, turn, failed, checkpoint)))
    with engine.begin() as connection:
        for table, values in rows.items():
            marks = ", ".join("?" * len(values[0]))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", values)
    store.close()
    engine.dispose()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert not path.with_name(f"{path.name}-wal").exists(), "the file is not all there is of the database"
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{freeze(revisions()[-1])}\n")
