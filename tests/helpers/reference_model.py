"""A reference model of the projections, in plain Python.

`ReferenceModel` follows events by the rules of the domain alone: no SQL, and nothing of `peon.persistence`.
`state_of` reads a database in the shape of `ReferenceModel.state`.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    Approval,
    ApprovalRequested,
    ApprovalStatus,
    Branch,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    Checkpoint,
    CheckpointCreated,
    CheckpointRestored,
    Commit,
    Message,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    Project,
    ProjectCreated,
    ProjectDeleted,
    ProjectRenamed,
    Snapshot,
    TextContent,
    ThinkingContent,
    Thread,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    ThreadSummary,
    ToolCallContent,
    ToolCallMessage,
    ToolResultContent,
    Turn,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
    TurnStatus,
)

if TYPE_CHECKING:
    from peon.persistence import ReadModel
ValueT = TypeVar("ValueT")

State = dict[str, Any]

FREE_TEXTS: dict[type, tuple[str, ...]] = {
    ProjectCreated: ("name", "path"),
    ProjectRenamed: ("name",),
    ThreadCreated: ("title", "model"),
    ThreadStatusChanged: ("error",),
    TurnFailed: ("error",),
    ApprovalRequested: ("action",),
    ActionRejected: ("reason",),
    ChangesCommitted: ("message",),
}
"""The fields in which the read model shows a NUL character as a symbol."""

NAMES_IN_GIT: dict[type, tuple[str, ...]] = {
    CheckpointCreated: ("git_ref",),
    ChangesCommitted: ("commit",),
    BranchCreated: ("name",),
    BranchPushed: ("name", "remote"),
}
"""The fields in which PostgreSQL cannot hold a NUL character."""


@dataclass
class ReferenceModel:
    """The state after the events so far. Each dictionary is in order of creation.

    Attributes:
        without_nul: Whether a name in git with a NUL character is refused, as on PostgreSQL.
        sequence: The sequence of the last event, including skipped ones.
    """

    without_nul: bool = False
    sequence: int = 0
    projects: dict[UUID, Project] = field(default_factory=dict)
    threads: dict[UUID, Thread] = field(default_factory=dict)
    turns: dict[UUID, Turn] = field(default_factory=dict)
    messages: dict[UUID, Message] = field(default_factory=dict)
    threads_of_messages: dict[UUID, UUID] = field(default_factory=dict)
    checkpoints: dict[UUID, Checkpoint] = field(default_factory=dict)
    approvals: dict[UUID, Approval] = field(default_factory=dict)
    commits: dict[int, Commit] = field(default_factory=dict)
    branches: dict[tuple[UUID, str], Branch] = field(default_factory=dict)
    selected: UUID | None = None
    last_sequences: dict[UUID, int] = field(default_factory=dict)
    first_words: dict[UUID, str] = field(default_factory=dict)
    unanswered: dict[UUID, str] = field(default_factory=dict)
    """The identifiers of calls of tools, by message."""

    def copy(self) -> "ReferenceModel":
        members = {name: copy(value) for name, value in vars(self).items()}
        return ReferenceModel(**members)

    def follow(self, event: OrchestrationEvent) -> str | None:
        """Applies the next event of the log, or skips it and returns what it contradicts."""
        reason = self.contradiction_of(event)
        self.sequence += 1
        if reason is None:
            self._take_in(_shown(event))
        return reason

    def follow_all(self, events: Iterable[OrchestrationEvent]) -> dict[int, str]:
        """Returns the contradictions of the skipped events, by sequence."""
        reasons = {}
        for event in events:
            reason = self.follow(event)
            if reason is not None:
                reasons[self.sequence] = reason
        return reasons

    def index_of_contradiction(self, batch: Sequence[OrchestrationEvent]) -> int | None:
        """Returns the index in the batch of the first event that must be refused; applies nothing."""
        reasons = self.copy().follow_all(batch)
        return min(reasons) - self.sequence - 1 if reasons else None

    def contradiction_of(self, event: OrchestrationEvent) -> str | None:
        for name in NAMES_IN_GIT.get(type(event), ()):
            if self.without_nul and "\0" in getattr(event, name):
                return f"NUL in {name}"
        match event:
            case ProjectCreated():
                return _taken(self.projects, event.project_id)
            case ProjectRenamed() | ProjectDeleted():
                return _unknown(self.projects, event.project_id)
            case ThreadCreated():
                return _unknown(self.projects, event.project_id) or _taken(self.threads, event.thread_id)
            case TurnStarted():
                return _unknown(self.threads, event.thread_id) or _taken(self.turns, event.turn_id)
            case TurnCompleted() | TurnInterrupted() | TurnFailed():
                return self._contradiction_of_part(event, self.turns, event.turn_id) or self._has_ended(event.turn_id)
            case MessageAppended():
                return self._contradiction_of_part(event, self.turns, event.turn_id) or _taken(
                    self.messages, event.message_id
                )
            case MessageChunkReceived():
                return self._contradiction_of_chunk(event)
            case ApprovalRequested():
                return self._contradiction_of_part(event, self.turns, event.turn_id) or _taken(
                    self.approvals, event.approval_id
                )
            case ActionApproved() | ActionRejected():
                return self._contradiction_of_decision(event)
            case CheckpointCreated():
                return self._contradiction_of_part(event, self.turns, event.turn_id) or _taken(
                    self.checkpoints, event.checkpoint_id
                )
            case CheckpointRestored():
                return self._contradiction_of_part(event, self.checkpoints, event.checkpoint_id)
            case _:
                return _unknown(self.threads, event.thread_id)

    def _contradiction_of_part(self, event: Any, known: dict[UUID, Any], identifier: UUID) -> str | None:
        if identifier not in known:
            return "unknown"
        return None if known[identifier].thread_id == event.thread_id else "of another thread"

    def _has_ended(self, turn_id: UUID) -> str | None:
        return None if self.turns[turn_id].status is TurnStatus.RUNNING else "ended already"

    def _contradiction_of_chunk(self, event: MessageChunkReceived) -> str | None:
        message = self.messages.get(event.message_id)
        if message is None:
            return "unknown"
        if (message.turn_id, self.threads_of_messages[message.id]) != (event.turn_id, event.thread_id):
            return "of another turn or thread"
        return None if isinstance(message.content, TextContent | ThinkingContent) else "no text"

    def _contradiction_of_decision(self, event: ActionApproved | ActionRejected) -> str | None:
        approval = self.approvals.get(event.approval_id)
        if approval is None:
            return "unknown"
        if (approval.turn_id, approval.thread_id) != (event.turn_id, event.thread_id):
            return "of another turn or thread"
        return None if approval.status is ApprovalStatus.PENDING else "decided already"

    def _take_in(self, event: OrchestrationEvent) -> None:
        match event:
            case ProjectCreated():
                self.projects[event.project_id] = Project(
                    id=event.project_id, name=event.name, path=event.path, created_at=event.occurred_at
                )
            case ProjectRenamed():
                _change(self.projects, event.project_id, name=event.name)
            case ProjectDeleted():
                del self.projects[event.project_id]
                for thread in list(self.threads.values()):
                    if thread.project_id == event.project_id:
                        self._forget_thread(thread.id)
            case ThreadCreated():
                self._create_thread(event)
            case ThreadDeleted():
                self._forget_thread(event.thread_id)
            case ThreadSelected():
                self.selected = event.thread_id
            case _:
                self._take_in_part_of_thread(event)
                if not isinstance(event, MessageChunkReceived):
                    self.last_sequences[event.thread_id] = self.sequence
                _change(self.threads, event.thread_id, updated_at=event.occurred_at)

    def _create_thread(self, event: ThreadCreated) -> None:
        self.last_sequences[event.thread_id] = self.sequence
        self.threads[event.thread_id] = Thread(
            id=event.thread_id,
            project_id=event.project_id,
            title=event.title,
            provider=event.provider,
            model=event.model,
            runtime_mode=event.runtime_mode,
            status=ThreadStatus.IDLE,
            error=None,
            created_at=event.occurred_at,
            updated_at=event.occurred_at,
        )

    def _forget_thread(self, thread_id: UUID) -> None:
        del self.threads[thread_id], self.last_sequences[thread_id]
        self.first_words.pop(thread_id, None)
        of_thread: list[dict[Any, Any]] = [self.turns, self.checkpoints, self.approvals, self.commits, self.branches]
        for members in of_thread:
            for key, member in list(members.items()):
                if member.thread_id == thread_id:
                    del members[key]
        for message_id, owner in list(self.threads_of_messages.items()):
            if owner == thread_id:
                del self.messages[message_id], self.threads_of_messages[message_id]
                self.unanswered.pop(message_id, None)
        if self.selected == thread_id:
            self.selected = None

    def _take_in_part_of_thread(self, event: Any) -> None:
        moment = event.occurred_at
        match event:
            case ThreadStatusChanged():
                _change(self.threads, event.thread_id, status=event.status, error=event.error)
            case TurnStarted():
                self.turns[event.turn_id] = Turn(
                    id=event.turn_id,
                    thread_id=event.thread_id,
                    status=TurnStatus.RUNNING,
                    error=None,
                    started_at=moment,
                    completed_at=None,
                )
            case TurnCompleted():
                _change(self.turns, event.turn_id, status=TurnStatus.COMPLETED, completed_at=moment)
            case TurnInterrupted():
                _change(self.turns, event.turn_id, status=TurnStatus.INTERRUPTED, completed_at=moment)
            case TurnFailed():
                _change(self.turns, event.turn_id, status=TurnStatus.FAILED, completed_at=moment, error=event.error)
            case MessageAppended():
                self.threads_of_messages[event.message_id] = event.thread_id
                self.messages[event.message_id] = Message(
                    id=event.message_id,
                    turn_id=event.turn_id,
                    role=event.role,
                    content=event.content,
                    created_at=moment,
                )
                self._take_in_content(event)
            case MessageChunkReceived():
                content: Any = self.messages[event.message_id].content
                extended = type(content)(text=content.text + event.delta)
                _change(self.messages, event.message_id, content=extended)
            case ApprovalRequested():
                self.approvals[event.approval_id] = Approval(
                    id=event.approval_id,
                    thread_id=event.thread_id,
                    turn_id=event.turn_id,
                    action=event.action,
                    detail=event.detail,
                    status=ApprovalStatus.PENDING,
                    reason=None,
                    requested_at=moment,
                    decided_at=None,
                )
            case ActionApproved():
                _change(self.approvals, event.approval_id, status=ApprovalStatus.APPROVED, decided_at=moment)
            case ActionRejected():
                decision = {"status": ApprovalStatus.REJECTED, "reason": event.reason, "decided_at": moment}
                _change(self.approvals, event.approval_id, **decision)
            case CheckpointCreated():
                self.checkpoints[event.checkpoint_id] = Checkpoint(
                    id=event.checkpoint_id,
                    thread_id=event.thread_id,
                    turn_id=event.turn_id,
                    git_ref=event.git_ref,
                    created_at=moment,
                )
            case CheckpointRestored():
                _change(self.checkpoints, event.checkpoint_id, restored_at=moment)
            case ChangesCommitted():
                self.commits[self.sequence] = Commit(
                    sequence=self.sequence,
                    thread_id=event.thread_id,
                    hash=event.commit,
                    message=event.message,
                    committed_at=moment,
                )
            case BranchCreated():
                self._change_branch(event, created_at=moment)
            case BranchPushed():
                self._change_branch(event, remote=event.remote, pushed_at=moment)

    def _take_in_content(self, event: MessageAppended) -> None:
        match event.content:
            case TextContent(text=text) if event.role is not MessageRole.SYSTEM and text.split():
                self.first_words.setdefault(event.thread_id, " ".join(text.split()).replace("\0", "\u2400"))
            case ToolCallContent(tool_call_id=call):
                self.unanswered[event.message_id] = call
            case ToolResultContent(tool_call_id=call):
                for message_id, other in reversed(self.unanswered.items()):
                    if (self.threads_of_messages[message_id], other) == (event.thread_id, call):
                        del self.unanswered[message_id]
                        break

    def _change_branch(self, event: BranchCreated | BranchPushed, **changes: Any) -> None:
        key = event.thread_id, event.name
        unknown = Branch(thread_id=event.thread_id, name=event.name, created_at=None, remote=None, pushed_at=None)
        self.branches.setdefault(key, unknown)
        _change(self.branches, key, **changes)

    def state(self) -> State:
        """Returns what `state_of` must return for a database with the same events."""

        def of(owners: Iterable[UUID], members: Iterable[ValueT], owner: str) -> dict[UUID, list[ValueT]]:
            lists: dict[UUID, list[ValueT]] = {key: [] for key in owners}
            for member in members:
                lists[getattr(member, owner)].append(member)
            return lists

        pending = [approval for approval in self.approvals.values() if approval.status is ApprovalStatus.PENDING]
        calls: dict[UUID, list[ToolCallMessage]] = {thread_id: [] for thread_id in self.threads}
        for message_id in self.unanswered:
            call = ToolCallMessage(**dict(self.messages[message_id]))
            calls[self.threads_of_messages[message_id]].append(call)
        thread_messages: dict[UUID, list[Message]] = {thread_id: [] for thread_id in self.threads}
        for message in self.messages.values():
            thread_messages[self.threads_of_messages[message.id]].append(message)
        return {
            "projects": list(self.projects.values()),
            "threads": of(self.projects, self.threads.values(), "project_id"),
            "turns": of(self.threads, self.turns.values(), "thread_id"),
            "messages": of(self.turns, self.messages.values(), "turn_id"),
            "thread_messages": thread_messages,
            "checkpoints": of(self.threads, self.checkpoints.values(), "thread_id"),
            "pending_approvals": of(self.threads, pending, "thread_id"),
            "approvals": dict(self.approvals),
            "commits": of(self.threads, self.commits.values(), "thread_id"),
            "branches": of(self.threads, self.branches.values(), "thread_id"),
            "selected_thread": None if self.selected is None else self.threads[self.selected],
            "summaries": self.summaries(),
            "running_turns": [turn for turn in self.turns.values() if turn.status is TurnStatus.RUNNING],
            "all_pending_approvals": pending,
            "unanswered_tool_calls": calls,
            "snapshot": self.snapshot(),
        }

    def summaries(self) -> list[ThreadSummary]:
        pending = [each.thread_id for each in self.approvals.values() if each.status is ApprovalStatus.PENDING]
        turns = [turn.thread_id for turn in self.turns.values()]
        messages = list(self.threads_of_messages.values())
        return [
            ThreadSummary(
                **dict(self.threads[thread_id]),
                first_words=self.first_words.get(thread_id),
                turn_count=turns.count(thread_id),
                message_count=messages.count(thread_id),
                pending_approvals=pending.count(thread_id),
                last_sequence=sequence,
            )
            for thread_id, sequence in sorted(self.last_sequences.items(), key=lambda item: -item[1])
        ]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            sequence=self.sequence,
            projects=tuple(self.projects.values()),
            threads=tuple(self.threads.values()),
            turns=tuple(self.turns.values()),
            messages=tuple(self.messages.values()),
            checkpoints=tuple(self.checkpoints.values()),
            pending_approvals=tuple(a for a in self.approvals.values() if a.status is ApprovalStatus.PENDING),
            commits=tuple(self.commits.values()),
            branches=tuple(self.branches.values()),
            selected_thread_id=self.selected,
        )


def _shown(event: OrchestrationEvent) -> OrchestrationEvent:
    """Returns the event with the texts that the read model shows."""
    texts = {name: getattr(event, name) for name in FREE_TEXTS.get(type(event), ())}
    return event.model_copy(update={name: text.replace("\0", "\u2400") for name, text in texts.items() if text})


def _taken(known: dict[UUID, Any], identifier: UUID) -> str | None:
    return "created twice" if identifier in known else None


def _unknown(known: dict[UUID, Any], identifier: UUID) -> str | None:
    return None if identifier in known else "unknown"


def _change(members: dict[Any, Any], key: object, **changes: object) -> None:
    members[key] = members[key].model_copy(update=changes)


def state_of(read: "ReadModel", approvals: Iterable[UUID] = ()) -> State:
    """Reads the whole read model, list by list and as a snapshot.

    Args:
        read: The read model of the database.
        approvals: The approvals to look up, because the lists contain only pending ones.
    """
    projects = read.projects()
    threads = {project.id: read.threads(project.id) for project in projects}
    of_all_projects = [thread.id for members in threads.values() for thread in members]
    turns = {thread_id: read.turns(thread_id) for thread_id in of_all_projects}
    of_all_threads = [turn.id for members in turns.values() for turn in members]
    found = {approval_id: read.approval(approval_id) for approval_id in approvals}
    return {
        "projects": projects,
        "threads": threads,
        "turns": turns,
        "messages": {turn_id: read.messages(turn_id) for turn_id in of_all_threads},
        "thread_messages": {thread_id: read.thread_messages(thread_id) for thread_id in of_all_projects},
        "checkpoints": {thread_id: read.checkpoints(thread_id) for thread_id in of_all_projects},
        "pending_approvals": {thread_id: read.pending_approvals(thread_id) for thread_id in of_all_projects},
        "approvals": {approval_id: approval for approval_id, approval in found.items() if approval is not None},
        "commits": {thread_id: read.commits(thread_id) for thread_id in of_all_projects},
        "branches": {thread_id: read.branches(thread_id) for thread_id in of_all_projects},
        "selected_thread": read.selected_thread(),
        "summaries": read.thread_summaries(),
        "running_turns": read.running_turns(),
        "all_pending_approvals": read.pending_approvals(),
        "unanswered_tool_calls": {thread_id: read.unanswered_tool_calls(thread_id) for thread_id in of_all_projects},
        "snapshot": read.snapshot(),
    }
