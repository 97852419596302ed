"""The handlers: what each event of the domain does to the tables."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic_core import to_json

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    ApprovalStatus,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    ProjectCreated,
    ProjectDeleted,
    ProjectRenamed,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    TurnStatus,
)
from peon.orchestration.events import Event
from peon.persistence.orchestration import statements
from peon.persistence.orchestration.batch import Batch, ThreadChanges
from peon.persistence.orchestration.first_words import first_words
from peon.persistence.orchestration.loaded_rows import (
    Contradiction,
    LoadedApproval,
    LoadedMessage,
    LoadedTurn,
)
from peon.persistence.orchestration.nul_characters import with_visible_nul
from peon.persistence.orchestration.visibility import PROJECT, THREAD, TURN
from peon.persistence.schema.timestamps import format_timestamp

EventT = TypeVar("EventT", bound=Event)


class Handler(NamedTuple):
    """A function that handles an event, and the rows that it reads: tables of a batch, with a field of the event."""

    reads: tuple[tuple[str, str], ...]
    apply: Callable[[Batch, Any, int], None]


HANDLERS: dict[type[Event], Handler] = {}
"""The handlers by class of event. `apply` raises `Contradiction` before it adds any change to the batch."""


def handles(
    event: type[EventT], **reads: str
) -> Callable[[Callable[[Batch, EventT, int], None]], Callable[[Batch, EventT, int], None]]:
    def register(apply: Callable[[Batch, EventT, int], None]) -> Callable[[Batch, EventT, int], None]:
        HANDLERS[event] = Handler(tuple(reads.items()), apply)
        return apply

    return register


def _require_thread(expected: UUID, event: Any, noun: str) -> None:
    if expected.int != event.thread_id.int:  # comparing two of UUID runs Python code
        raise Contradiction(f"its {noun} is of thread {expected}, not of {event.thread_id}")


def _turn_of(batch: Batch, event: Any) -> LoadedTurn:
    turn = batch.turns.get(event.turn_id)
    _require_thread(turn.thread_id, event, "turn")
    return turn


@handles(ProjectCreated, projects="project_id")
def create_project(batch: Batch, event: ProjectCreated, sequence: int) -> None:
    hidden = batch.projects.add(event.project_id, True)
    values = with_visible_nul(event.name), with_visible_nul(event.path), format_timestamp(event.occurred_at), sequence
    key = batch.projects.key(event.project_id)
    batch.add_row(statements.INSERT_PROJECT, statements.TAKE_OVER_PROJECT, key, *values, hidden=hidden)


@handles(ProjectRenamed, projects="project_id")
def rename_project(batch: Batch, event: ProjectRenamed, _: int) -> None:
    batch.projects.get(event.project_id)
    batch.add(statements.RENAME_PROJECT, with_visible_nul(event.name), batch.projects.key(event.project_id))


@handles(ProjectDeleted, projects="project_id")
def delete_project(batch: Batch, event: ProjectDeleted, sequence: int) -> None:
    batch.projects.get(event.project_id)
    batch.delete(PROJECT, batch.projects.key(event.project_id), sequence)


@handles(ThreadCreated, projects="project_id", threads="thread_id")
def create_thread(batch: Batch, event: ThreadCreated, sequence: int) -> None:
    batch.projects.get(event.project_id)
    hidden = batch.threads.add(event.thread_id, True)
    moment = format_timestamp(event.occurred_at)
    batch.add_row(
        statements.INSERT_THREAD,
        statements.TAKE_OVER_THREAD,
        batch.threads.key(event.thread_id),
        batch.projects.key(event.project_id),
        with_visible_nul(event.title),
        event.provider.value,
        with_visible_nul(event.model),
        event.runtime_mode.value,
        ThreadStatus.IDLE.value,
        None,
        moment,
        moment,
        sequence,
        sequence,
        0,
        0,
        None,
        hidden=hidden,
    )


@handles(ThreadDeleted, threads="thread_id")
def delete_thread(batch: Batch, event: ThreadDeleted, sequence: int) -> None:
    batch.threads.get(event.thread_id)
    batch.delete(THREAD, batch.threads.key(event.thread_id), sequence)


@handles(ThreadSelected, threads="thread_id")
def select_thread(batch: Batch, event: ThreadSelected, _: int) -> None:
    batch.threads.get(event.thread_id)
    batch.select_thread(batch.threads.key(event.thread_id))


@handles(ThreadStatusChanged, threads="thread_id")
def change_thread_status(batch: Batch, event: ThreadStatusChanged, sequence: int) -> None:
    batch.threads.get(event.thread_id)
    batch.touch(event, sequence)
    error = with_visible_nul(event.error)
    batch.add(statements.SET_THREAD_STATUS, event.status.value, error, batch.threads.key(event.thread_id))


@handles(TurnStarted, threads="thread_id", turns="turn_id")
def start_turn(batch: Batch, event: TurnStarted, sequence: int) -> None:
    batch.threads.get(event.thread_id)
    thread_key = batch.threads.key(event.thread_id)
    key = batch.turns.key(event.turn_id)
    hidden = batch.turns.add(event.turn_id, LoadedTurn(event.thread_id, thread_key, running=True, new=True))
    if hidden:
        batch.add(statements.INSERT_DELETION, TURN, key, sequence)
    batch.touch(event, sequence).turns += 1
    batch.add_row(
        statements.INSERT_TURN,
        statements.TAKE_OVER_TURN,
        key,
        thread_key,
        TurnStatus.RUNNING.value,
        None,
        format_timestamp(event.occurred_at),
        None,
        sequence,
        hidden=hidden,
    )


def _end_turn(
    batch: Batch, event: TurnCompleted | TurnInterrupted | TurnFailed, sequence: int, status: TurnStatus
) -> None:
    turn = _turn_of(batch, event)
    if not turn.running:
        raise Contradiction(f"turn {event.turn_id} has ended already")
    turn.running = False
    batch.touch(event, sequence)
    error = with_visible_nul(event.error) if isinstance(event, TurnFailed) else None
    turn_key = batch.turns.key(event.turn_id)
    batch.add(statements.END_TURN, status.value, error, format_timestamp(event.occurred_at), turn_key)
    if turn.new:
        batch.texts.end_new_turn(turn_key)
    else:
        batch.texts.end_turn(turn_key, sequence)


@handles(TurnCompleted, turns="turn_id")
def complete_turn(batch: Batch, event: TurnCompleted, sequence: int) -> None:
    _end_turn(batch, event, sequence, TurnStatus.COMPLETED)


@handles(TurnInterrupted, turns="turn_id")
def interrupt_turn(batch: Batch, event: TurnInterrupted, sequence: int) -> None:
    _end_turn(batch, event, sequence, TurnStatus.INTERRUPTED)


@handles(TurnFailed, turns="turn_id")
def fail_turn(batch: Batch, event: TurnFailed, sequence: int) -> None:
    _end_turn(batch, event, sequence, TurnStatus.FAILED)


@handles(MessageAppended, turns="turn_id", messages="message_id")
def append_message(batch: Batch, event: MessageAppended, sequence: int) -> None:
    turn = _turn_of(batch, event)
    turn_key = batch.turns.key(event.turn_id)
    content = event.content
    has_text = content.type in ("text", "thinking")
    key = batch.messages.key(event.message_id)
    message = LoadedMessage(key, turn_key, event.thread_id, event.turn_id, has_text)
    if batch.messages.add(event.message_id, message):
        batch.add(statements.REMOVE_MESSAGE, key)
    _count_message(batch.touch(event, sequence), event)
    if content.type == "tool_call":
        batch.tool_calls.add_call(content.tool_call_id, turn.thread_key, sequence, turn_key, key)
    elif content.type == "tool_result":
        batch.tool_calls.add_result(content.tool_call_id, turn.thread_key, sequence)
    row: list[object] = [
        key,
        turn_key,
        event.role.value,
        # Of its fields: the serializer of the class would check JSON again in Python code, for three times as long.
        to_json(content.__dict__).decode(),
        format_timestamp(event.occurred_at),
        sequence,
        turn.thread_key,
    ]
    batch.texts.add_message(message, row)


def _count_message(thread: ThreadChanges, event: MessageAppended) -> None:
    thread.messages += 1
    if thread.first_words is None and event.content.type == "text" and event.role is not MessageRole.SYSTEM:
        thread.first_words = first_words(event.content.text)


@handles(MessageChunkReceived, messages="message_id")
def receive_chunk(batch: Batch, event: MessageChunkReceived, sequence: int) -> None:
    message = batch.messages.get(event.message_id)
    _require_thread(message.thread_id, event, "message")
    if message.turn_id.int != event.turn_id.int:
        raise Contradiction(f"its message is of turn {message.turn_id}, not of {event.turn_id}")
    if not message.has_text:
        raise Contradiction(f"message {event.message_id} has no text that a chunk could extend")
    batch.touch_by_chunk(event)
    batch.texts.add_chunk(message, sequence, event.delta)


@handles(ApprovalRequested, turns="turn_id", approvals="approval_id")
def request_approval(batch: Batch, event: ApprovalRequested, sequence: int) -> None:
    turn = _turn_of(batch, event)
    key = batch.approvals.key(event.approval_id)
    if batch.approvals.add(event.approval_id, LoadedApproval(event.thread_id, event.turn_id, pending=True)):
        batch.add(statements.REMOVE_APPROVAL, key)
    batch.touch(event, sequence)
    batch.add(
        statements.INSERT_APPROVAL,
        key,
        turn.thread_key,
        batch.turns.key(event.turn_id),
        with_visible_nul(event.action),
        to_json(event.detail).decode(),
        ApprovalStatus.PENDING.value,
        None,
        format_timestamp(event.occurred_at),
        None,
        sequence,
    )


def _decide(
    batch: Batch, event: ActionApproved | ActionRejected, sequence: int, status: ApprovalStatus, reason: str | None
) -> None:
    approval = batch.approvals.get(event.approval_id)
    _require_thread(approval.thread_id, event, "approval")
    if approval.turn_id != event.turn_id:
        raise Contradiction(f"its approval is of turn {approval.turn_id}, not of {event.turn_id}")
    if not approval.pending:
        raise Contradiction(f"approval {event.approval_id} was decided already")
    approval.pending = False
    batch.touch(event, sequence)
    moment = format_timestamp(event.occurred_at)
    batch.add(statements.DECIDE_APPROVAL, status.value, reason, moment, batch.approvals.key(event.approval_id))


@handles(ActionApproved, approvals="approval_id")
def approve_action(batch: Batch, event: ActionApproved, sequence: int) -> None:
    _decide(batch, event, sequence, ApprovalStatus.APPROVED, None)


@handles(ActionRejected, approvals="approval_id")
def reject_action(batch: Batch, event: ActionRejected, sequence: int) -> None:
    _decide(batch, event, sequence, ApprovalStatus.REJECTED, with_visible_nul(event.reason))


@handles(CheckpointCreated, turns="turn_id", checkpoints="checkpoint_id")
def create_checkpoint(batch: Batch, event: CheckpointCreated, sequence: int) -> None:
    turn = _turn_of(batch, event)
    key = batch.checkpoints.key(event.checkpoint_id)
    if batch.checkpoints.add(event.checkpoint_id, event.thread_id):
        batch.add(statements.REMOVE_CHECKPOINT, key)
    batch.touch(event, sequence)
    batch.add(
        statements.INSERT_CHECKPOINT,
        key,
        turn.thread_key,
        batch.turns.key(event.turn_id),
        event.git_ref,
        format_timestamp(event.occurred_at),
        sequence,
        None,
    )


@handles(CheckpointRestored, checkpoints="checkpoint_id")
def restore_checkpoint(batch: Batch, event: CheckpointRestored, sequence: int) -> None:
    _require_thread(batch.checkpoints.get(event.checkpoint_id), event, "checkpoint")
    batch.touch(event, sequence)
    batch.add(
        statements.RESTORE_CHECKPOINT, format_timestamp(event.occurred_at), batch.checkpoints.key(event.checkpoint_id)
    )


@handles(ChangesCommitted, threads="thread_id")
def commit_changes(batch: Batch, event: ChangesCommitted, sequence: int) -> None:
    batch.threads.get(event.thread_id)
    batch.touch(event, sequence)
    moment = format_timestamp(event.occurred_at)
    batch.add(
        statements.INSERT_COMMIT,
        sequence,
        batch.threads.key(event.thread_id),
        event.commit,
        with_visible_nul(event.message),
        moment,
    )


def _add_branch(batch: Batch, event: BranchCreated | BranchPushed, sequence: int) -> tuple[str, str]:
    """Returns the branch's key."""
    batch.threads.get(event.thread_id)
    batch.touch(event, sequence)
    key = batch.threads.key(event.thread_id), event.name
    if batch.deletions_left:
        batch.add(statements.REMOVE_DELETED_BRANCH, *key)
    batch.add(statements.ADD_BRANCH, *key, sequence, *key)
    return key


@handles(BranchCreated, threads="thread_id")
def create_branch(batch: Batch, event: BranchCreated, sequence: int) -> None:
    key = _add_branch(batch, event, sequence)
    batch.add(statements.SET_BRANCH_CREATED, format_timestamp(event.occurred_at), *key)


@handles(BranchPushed, threads="thread_id")
def push_branch(batch: Batch, event: BranchPushed, sequence: int) -> None:
    key = _add_branch(batch, event, sequence)
    batch.add(statements.SET_BRANCH_PUSHED, event.remote, format_timestamp(event.occurred_at), *key)
