"""A log with one event of each kind, and the helpers of the tests of projections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from uuid import UUID

import pytest
from helpers.processes import PATIENCE
from helpers.reference_model import ReferenceModel, State, state_of
from sqlalchemy import insert, select

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    ProjectDeleted,
    ProjectRenamed,
    Provider,
    RuntimeMode,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from peon.persistence import Database, ProjectionError, schema

Opener = Callable[..., Database]

(
    PROJECT,
    OTHER_PROJECT,
    THREAD,
    OTHER_THREAD,
    TURN,
    OTHER_TURN,
    ENDED_TURN,
    MESSAGE,
    TOOL_CALL,
    TOOL_RESULT,
    PENDING,
    DECIDED,
    CHECKPOINT,
    NEW,
    UNKNOWN,
) = (UUID(int=number) for number in range(1, 16))

ON_TURN: dict[str, Any] = {"turn_id": TURN, "thread_id": THREAD}
ON_ENDED_TURN: dict[str, Any] = {"turn_id": ENDED_TURN, "thread_id": THREAD}
ON_OTHER_TURN: dict[str, Any] = {"turn_id": OTHER_TURN, "thread_id": OTHER_THREAD}
ON_WRONG_THREAD: dict[str, Any] = {"turn_id": TURN, "thread_id": OTHER_THREAD}
ON_WRONG_TURN: dict[str, Any] = {"turn_id": ENDED_TURN, "thread_id": THREAD}
ON_UNKNOWN_TURN: dict[str, Any] = {"turn_id": UNKNOWN, "thread_id": THREAD}
NEW_MESSAGE: dict[str, Any] = {"message_id": NEW, "role": MessageRole.USER, "content": TextContent(text="x")}
NEW_APPROVAL: dict[str, Any] = {"approval_id": NEW, "action": "shell", "detail": None}
NEW_CHECKPOINT: dict[str, Any] = {"checkpoint_id": NEW, "git_ref": "refs/peon/2"}


def project(identifier: UUID) -> ProjectCreated:
    return ProjectCreated(project_id=identifier, name="tide-table", path="/home/ada/tide-table")


def thread(identifier: UUID, of: UUID = PROJECT) -> ThreadCreated:
    return ThreadCreated(
        thread_id=identifier,
        project_id=of,
        provider=Provider.CLAUDE,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
    )


def message(identifier: UUID, content: Any) -> MessageAppended:
    return MessageAppended(message_id=identifier, role=MessageRole.ASSISTANT, content=content, **ON_TURN)


def chunk(identifier: UUID, delta: str = "x", **place: Any) -> MessageChunkReceived:
    return MessageChunkReceived(message_id=identifier, delta=delta, **(place or ON_TURN))


def renamed(name: str, identifier: UUID = PROJECT) -> ProjectRenamed:
    return ProjectRenamed(project_id=identifier, name=name)


SCENE: list[OrchestrationEvent] = [
    project(PROJECT),
    project(OTHER_PROJECT),
    thread(THREAD),
    thread(OTHER_THREAD, OTHER_PROJECT),
    ThreadSelected(thread_id=THREAD),
    TurnStarted(**ON_ENDED_TURN),
    TurnCompleted(**ON_ENDED_TURN),
    TurnStarted(**ON_TURN),
    TurnStarted(**ON_OTHER_TURN),
    message(MESSAGE, ThinkingContent(text="ebb")),
    message(TOOL_CALL, ToolCallContent(tool_call_id="1", name="shell", arguments={"text": "ls"})),
    message(TOOL_RESULT, ToolResultContent(tool_call_id="2", output={"text": "a"}, is_error=False)),
    chunk(MESSAGE, " and flow"),
    ApprovalRequested(approval_id=PENDING, action="shell", detail={"command": "ls"}, **ON_TURN),
    ApprovalRequested(approval_id=DECIDED, action="shell", detail=None, **ON_TURN),
    ActionRejected(approval_id=DECIDED, reason="No.", **ON_TURN),
    CheckpointCreated(checkpoint_id=CHECKPOINT, git_ref="refs/peon/1", **ON_TURN),
    ChangesCommitted(thread_id=THREAD, commit="c0ffee", message="Tides"),
    BranchCreated(thread_id=THREAD, name="tides"),
]
"""One event of each kind; two projects with a thread each."""


CONTRADICTIONS: dict[str, list[OrchestrationEvent]] = {
    f"there is no project {UNKNOWN}": [
        renamed("x", UNKNOWN),
        ProjectDeleted(project_id=UNKNOWN),
        thread(NEW, UNKNOWN),
    ],
    f"there is no thread {UNKNOWN}": [
        ThreadDeleted(thread_id=UNKNOWN),
        ThreadSelected(thread_id=UNKNOWN),
        ThreadStatusChanged(thread_id=UNKNOWN, status=ThreadStatus.IDLE),
        TurnStarted(turn_id=NEW, thread_id=UNKNOWN),
        ChangesCommitted(thread_id=UNKNOWN, commit="c0ffee", message="x"),
        BranchCreated(thread_id=UNKNOWN, name="tides"),
        BranchPushed(thread_id=UNKNOWN, name="tides", remote="origin"),
    ],
    f"there is no turn {UNKNOWN}": [
        TurnCompleted(**ON_UNKNOWN_TURN),
        TurnInterrupted(**ON_UNKNOWN_TURN),
        TurnFailed(error="x", **ON_UNKNOWN_TURN),
        MessageAppended(**NEW_MESSAGE, **ON_UNKNOWN_TURN),
        ApprovalRequested(**NEW_APPROVAL, **ON_UNKNOWN_TURN),
        CheckpointCreated(**NEW_CHECKPOINT, **ON_UNKNOWN_TURN),
    ],
    f"there is no message {UNKNOWN}": [chunk(UNKNOWN)],
    f"there is no approval {UNKNOWN}": [
        ActionApproved(approval_id=UNKNOWN, **ON_TURN),
        ActionRejected(approval_id=UNKNOWN, **ON_TURN),
    ],
    f"there is no checkpoint {UNKNOWN}": [CheckpointRestored(checkpoint_id=UNKNOWN, thread_id=THREAD)],
    f"there is a project {PROJECT} already": [project(PROJECT)],
    f"there is a thread {THREAD} already": [thread(THREAD), thread(THREAD, OTHER_PROJECT)],
    f"there is a turn {TURN} already": [TurnStarted(**ON_TURN), TurnStarted(**ON_WRONG_THREAD)],
    f"there is a turn {ENDED_TURN} already": [TurnStarted(**ON_ENDED_TURN)],
    f"there is a message {MESSAGE} already": [
        message(MESSAGE, ThinkingContent(text="ebb")),
        MessageAppended(**NEW_MESSAGE | {"message_id": MESSAGE}, **ON_OTHER_TURN),
    ],
    f"there is a message {TOOL_CALL} already": [message(TOOL_CALL, TextContent(text="x"))],
    f"approval {PENDING} already": [ApprovalRequested(**NEW_APPROVAL | {"approval_id": PENDING}, **ON_TURN)],
    f"approval {DECIDED} already": [ApprovalRequested(**NEW_APPROVAL | {"approval_id": DECIDED}, **ON_OTHER_TURN)],
    f"there is a checkpoint {CHECKPOINT} already": [
        CheckpointCreated(**NEW_CHECKPOINT | {"checkpoint_id": CHECKPOINT}, **ON_TURN),
        CheckpointCreated(**NEW_CHECKPOINT | {"checkpoint_id": CHECKPOINT}, **ON_OTHER_TURN),
    ],
    f"is of thread {THREAD}, not of {OTHER_THREAD}": [
        TurnCompleted(**ON_WRONG_THREAD),
        TurnInterrupted(**ON_WRONG_THREAD),
        TurnFailed(error="x", **ON_WRONG_THREAD),
        MessageAppended(**NEW_MESSAGE, **ON_WRONG_THREAD),
        chunk(MESSAGE, **ON_WRONG_THREAD),
        ApprovalRequested(**NEW_APPROVAL, **ON_WRONG_THREAD),
        ActionApproved(approval_id=PENDING, **ON_WRONG_THREAD),
        ActionRejected(approval_id=PENDING, **ON_WRONG_THREAD),
        CheckpointCreated(**NEW_CHECKPOINT, **ON_WRONG_THREAD),
        CheckpointRestored(checkpoint_id=CHECKPOINT, thread_id=OTHER_THREAD),
    ],
    f"is of turn {TURN}, not of {ENDED_TURN}": [
        chunk(MESSAGE, **ON_WRONG_TURN),
        ActionApproved(approval_id=PENDING, **ON_WRONG_TURN),
        ActionRejected(approval_id=PENDING, **ON_WRONG_TURN),
    ],
    f"turn {ENDED_TURN} has ended already": [
        TurnCompleted(**ON_ENDED_TURN),
        TurnInterrupted(**ON_ENDED_TURN),
        TurnFailed(error="x", **ON_ENDED_TURN),
    ],
    f"approval {DECIDED} was decided already": [
        ActionApproved(approval_id=DECIDED, **ON_TURN),
        ActionRejected(approval_id=DECIDED, **ON_TURN),
    ],
    f"message {TOOL_CALL} has no text": [chunk(TOOL_CALL)],
    f"message {TOOL_RESULT} has no text": [chunk(TOOL_RESULT)],
}

EACH_CONTRADICTION = [
    pytest.param(each, reason, id=f"{each.type}: {reason.replace('00000000-0000-0000-0000-0000000000', '')}")
    for reason, events in CONTRADICTIONS.items()
    for each in events
]
each_contradiction = pytest.mark.parametrize(("contradictory", "reason"), EACH_CONTRADICTION)


def found(database: Database) -> State:
    return state_of(database.read_model, [PENDING, DECIDED, NEW])


def told(*events: OrchestrationEvent) -> ReferenceModel:
    model = ReferenceModel()
    assert model.follow_all(events) == {}
    return model


def is_postgresql(database: Database) -> bool:
    return database.engine.dialect.name == "postgresql"


def rows_of_all_tables(database: Database) -> dict[str, list[Any]]:
    tables = schema.metadata.sorted_tables
    with database.engine.connect() as connection:
        return {
            table.name: list(connection.execute(select(table).order_by(*table.primary_key)).all()) for table in tables
        }


def change(database: Database, *statements: Any) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def another(database: Database, **options: Any) -> Iterator[Database]:
    """Opens the same database again, as another process would."""
    with Database.open(url=database.engine.url, **options) as other:
        yield other


def failures_of_rebuilds_at_once(database: Database) -> list[BaseException]:
    """Returns the errors of three rebuilds that begin at the same time, each with connections of its own."""
    failures: list[BaseException] = []

    def rebuild() -> None:
        try:
            with another(database) as other:
                other.projections.rebuild()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=rebuild) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return failures


def append_alone(database: Database, *events: OrchestrationEvent) -> None:
    """Stores events without updating projections, as an older version would."""
    alone = Database(database.engine, maintain_projections=False)
    alone.events.append_all(events)
    alone.events.close()


def add_row(database: Database, event_type: Any, payload: Any, stored_at: str = "2026-05-17T00:00:00.000000Z") -> int:
    sequence = database.events.last_sequence() + 1
    values = {"sequence": sequence, "event_type": event_type, "payload": payload, "stored_at": stored_at}
    change(database, insert(schema.events).values(values))
    return sequence


def refuse(database: Database, batch: list[OrchestrationEvent]) -> ProjectionError:
    """Checks that the batch is refused, that nothing of it is stored, and that the next append works."""
    before = database.read_model.snapshot()
    with pytest.raises(ProjectionError) as caught:
        database.events.append_all(batch)

    assert database.events.last_sequence() == before.sequence
    assert database.read_model.snapshot() == before
    (stored,) = database.events.append_all([renamed("next", before.projects[-1].id)])
    assert stored.sequence == before.sequence + 1
    return caught.value


def random_name(size: int) -> str:
    """Returns a text of `size` bytes that PostgreSQL cannot compress; each character but the first has two bytes."""
    return "x" * (size % 2) + "".join(Random(size).choices("".join(map(chr, range(0x100, 0x800))), k=size // 2))
