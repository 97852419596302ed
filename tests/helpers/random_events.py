"""Random events of the domain; they contradict earlier events only if a test asks for that."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    Approval,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    Message,
    MessageAppended,
    MessageChunkReceived,
    MessageContent,
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
    TurnStatus,
)

if TYPE_CHECKING:
    pass
from helpers.reference_model import ReferenceModel

ValueT = TypeVar("ValueT")

START = datetime(2026, 5, 17, 8, 30, tzinfo=UTC)


def identifiers(kind: int, count: int) -> list[UUID]:
    return [UUID(int=kind << 32 | number) for number in range(1, count + 1)]


PROJECTS = identifiers(1, 2)
THREADS = identifiers(2, 3)
TURNS = identifiers(3, 4)
MESSAGES = identifiers(4, 5)
CHECKPOINTS = identifiers(5, 3)
APPROVALS = identifiers(6, 4)
TOOL_CALLS = ["1", "a\0b"]
BRANCHES = ["main", "tide", "Flut/ebbe"]
NOWHERE = UUID(int=2**128 - 1)

TEXTS = ["", "ebb", 'It\'s "quoted" \\ %s :name ?', "\N{WATER WAVE} über\u2028", "one\ntwo\x7f"]
TEXTS_WITH_NUL = [*TEXTS, "a\0b"]
DETAILS: list[Any] = [None, "a\0b", {"command": "ls", "text": "x"}, [1.5, True, {"deep": []}], 10**40, {}]


def invented(
    chance: Random, model: ReferenceModel, count: int, *, contradictions: float = 0.0
) -> Iterator[OrchestrationEvent]:
    """Yields events that continue the log of the model, which stays unchanged; a share of them is contradictory.

    Identifiers are few, so that they collide, are deleted, and are used again.
    """
    inventor = _Inventor(chance, model.copy())
    for _ in range(count):
        event = inventor.invent(contradictory=contradictions > 0 and chance.random() < contradictions)
        inventor.model.follow(event)
        yield event


class _Kind(NamedTuple):
    weight: int
    needs: str
    """The attribute of the model that must not be empty for this event."""
    invent: "Callable[[_Inventor], OrchestrationEvent]"


class _Inventor:
    def __init__(self, chance: Random, model: ReferenceModel) -> None:
        self.chance = chance
        self.model = model
        self.wild = False
        self.earlier: list[OrchestrationEvent] = []

    def invent(self, *, contradictory: bool) -> OrchestrationEvent:
        self.wild = contradictory
        possible = [kind for kind in _KINDS if contradictory or not kind.needs or getattr(self.model, kind.needs)]
        for _ in range(8):
            event = self.candidate(possible)
            if (self.model.contradiction_of(event) is not None) is contradictory:
                return event
        if contradictory:
            return ProjectRenamed(project_id=NOWHERE, name="", occurred_at=self.moment())
        if self.model.projects:
            return ProjectRenamed(project_id=next(iter(self.model.projects)), name="", occurred_at=self.moment())
        return ProjectCreated(project_id=PROJECTS[0], name="", path="", occurred_at=self.moment())

    def candidate(self, possible: list[_Kind]) -> OrchestrationEvent:
        if self.wild and self.earlier and not self.chance.randrange(6):
            return self.chance.choice(self.earlier)
        (kind,) = self.chance.choices(possible, [kind.weight for kind in possible])
        event = kind.invent(self)
        self.earlier.append(event)
        return event

    def moment(self) -> datetime:
        """Returns a moment that may be earlier than the last one, because real clocks are sometimes set back."""
        return START + timedelta(microseconds=self.chance.randrange(10**9))

    def text(self) -> str:
        """Returns a text for a field of plain text."""
        return self.chance.choice(TEXTS_WITH_NUL)

    def name_in_git(self) -> str:
        """Returns a text for a field in which PostgreSQL cannot hold a NUL character."""
        return self.chance.choice(TEXTS if self.model.without_nul and not self.wild else TEXTS_WITH_NUL)

    def known(self, members: Collection[UUID], pool: list[UUID]) -> UUID:
        if not members or (self.wild and self.chance.randrange(2)):
            return self.chance.choice(pool)
        return self.chance.choice(list(members))

    def new(self, members: Collection[UUID], pool: list[UUID]) -> UUID:
        free = [identifier for identifier in pool if identifier not in members]
        if not free or (self.wild and self.chance.randrange(2)):
            return self.chance.choice(pool)
        return self.chance.choice(free)

    def thread(self) -> UUID:
        return self.known(self.model.threads, THREADS)

    def on_thread(self) -> dict[str, Any]:
        return {"thread_id": self.thread(), "occurred_at": self.moment()}

    def of_turn(self, turn_id: UUID) -> dict[str, Any]:
        """Returns the identifiers of a turn and its thread; a wild event may have any thread."""
        turn = self.model.turns.get(turn_id)
        if turn is None or (self.wild and self.chance.randrange(2)):
            return {"turn_id": turn_id, **self.on_thread()}
        return {"turn_id": turn_id, "thread_id": turn.thread_id, "occurred_at": self.moment()}

    def on_turn(self) -> dict[str, Any]:
        return self.of_turn(self.known(self.model.turns, TURNS))

    def on_running_turn(self) -> dict[str, Any]:
        running = [turn.id for turn in self.model.turns.values() if turn.status is TurnStatus.RUNNING]
        return self.of_turn(self.known([] if self.wild else running, TURNS))

    def on_turn_of(self, part: Message | Approval | None) -> dict[str, Any]:
        if part is None or (self.wild and self.chance.randrange(2)):
            return self.on_turn()
        return self.of_turn(part.turn_id)

    def content(self) -> MessageContent:
        match self.chance.randrange(8):
            case 0:
                return ToolCallContent(
                    tool_call_id=self.chance.choice(TOOL_CALLS),
                    name="a\0b",
                    arguments={"text": self.chance.choice(DETAILS)},
                )
            case 1:
                return ToolResultContent(
                    tool_call_id=self.chance.choice(TOOL_CALLS), output=self.chance.choice(DETAILS), is_error=True
                )
            case 2 | 3:
                return ThinkingContent(text=self.chance.choice(TEXTS_WITH_NUL))
            case _:
                return TextContent(text=self.chance.choice(TEXTS_WITH_NUL))

    def create_project(self) -> OrchestrationEvent:
        project_id = self.new(self.model.projects, PROJECTS)
        return ProjectCreated(project_id=project_id, name=self.text(), path=self.text(), occurred_at=self.moment())

    def rename_project(self) -> OrchestrationEvent:
        project_id = self.known(self.model.projects, PROJECTS)
        return ProjectRenamed(project_id=project_id, name=self.text(), occurred_at=self.moment())

    def delete_project(self) -> OrchestrationEvent:
        return ProjectDeleted(project_id=self.known(self.model.projects, PROJECTS), occurred_at=self.moment())

    def create_thread(self) -> OrchestrationEvent:
        return ThreadCreated(
            thread_id=self.new(self.model.threads, THREADS),
            project_id=self.known(self.model.projects, PROJECTS),
            title=self.chance.choice([None, self.text()]),
            provider=self.chance.choice(list(Provider)),
            model=self.text(),
            runtime_mode=self.chance.choice(list(RuntimeMode)),
            occurred_at=self.moment(),
        )

    def change_status(self) -> OrchestrationEvent:
        status = self.chance.choice(list(ThreadStatus))
        error = self.text() if status is ThreadStatus.ERROR else None
        return ThreadStatusChanged(status=status, error=error, **self.on_thread())

    def start_turn(self) -> OrchestrationEvent:
        return TurnStarted(turn_id=self.new(self.model.turns, TURNS), **self.on_thread())

    def append_message(self) -> OrchestrationEvent:
        return MessageAppended(
            message_id=self.new(self.model.messages, MESSAGES),
            role=self.chance.choice(list(MessageRole)),
            content=self.content(),
            **self.on_turn(),
        )

    def receive_chunk(self) -> OrchestrationEvent:
        message_id = self.known(self.model.messages, MESSAGES)
        place = self.on_turn_of(self.model.messages.get(message_id))
        return MessageChunkReceived(message_id=message_id, delta=self.chance.choice(TEXTS_WITH_NUL), **place)

    def request_approval(self) -> OrchestrationEvent:
        approval_id = self.new(self.model.approvals, APPROVALS)
        detail = self.chance.choice(DETAILS)
        return ApprovalRequested(approval_id=approval_id, action=self.text(), detail=detail, **self.on_turn())

    def approve(self) -> OrchestrationEvent:
        approval_id = self.known(self.model.approvals, APPROVALS)
        return ActionApproved(approval_id=approval_id, **self.on_turn_of(self.model.approvals.get(approval_id)))

    def reject(self) -> OrchestrationEvent:
        approval_id = self.known(self.model.approvals, APPROVALS)
        reason = self.chance.choice([None, self.text()])
        place = self.on_turn_of(self.model.approvals.get(approval_id))
        return ActionRejected(approval_id=approval_id, reason=reason, **place)

    def create_checkpoint(self) -> OrchestrationEvent:
        checkpoint_id = self.new(self.model.checkpoints, CHECKPOINTS)
        return CheckpointCreated(checkpoint_id=checkpoint_id, git_ref=self.name_in_git(), **self.on_turn())

    def restore_checkpoint(self) -> OrchestrationEvent:
        checkpoint = self.model.checkpoints.get(self.known(self.model.checkpoints, CHECKPOINTS))
        place = self.on_thread()
        if checkpoint is None or (self.wild and self.chance.randrange(2)):
            return CheckpointRestored(checkpoint_id=self.chance.choice(CHECKPOINTS), **place)
        return CheckpointRestored(checkpoint_id=checkpoint.id, **place | {"thread_id": checkpoint.thread_id})

    def commit_changes(self) -> ChangesCommitted:
        return ChangesCommitted(commit=self.name_in_git(), message=self.text(), **self.on_thread())

    def push_branch(self) -> OrchestrationEvent:
        name = self.chance.choice([*BRANCHES, self.name_in_git()])
        return BranchPushed(name=name, remote=self.name_in_git(), **self.on_thread())


_KINDS = (
    _Kind(4, "", _Inventor.create_project),
    _Kind(1, "projects", _Inventor.rename_project),
    _Kind(1, "projects", _Inventor.delete_project),
    _Kind(6, "projects", _Inventor.create_thread),
    _Kind(1, "threads", lambda self: ThreadDeleted(**self.on_thread())),
    _Kind(2, "threads", lambda self: ThreadSelected(**self.on_thread())),
    _Kind(2, "threads", _Inventor.change_status),
    _Kind(6, "threads", _Inventor.start_turn),
    _Kind(3, "turns", lambda self: TurnCompleted(**self.on_running_turn())),
    _Kind(2, "turns", lambda self: TurnInterrupted(**self.on_running_turn())),
    _Kind(2, "turns", lambda self: TurnFailed(error=self.text(), **self.on_running_turn())),
    _Kind(8, "turns", _Inventor.append_message),
    _Kind(20, "messages", _Inventor.receive_chunk),
    _Kind(4, "turns", _Inventor.request_approval),
    _Kind(2, "approvals", _Inventor.approve),
    _Kind(2, "approvals", _Inventor.reject),
    _Kind(3, "turns", _Inventor.create_checkpoint),
    _Kind(2, "checkpoints", _Inventor.restore_checkpoint),
    _Kind(
        2, "threads", lambda self: ChangesCommitted(commit=self.name_in_git(), message=self.text(), **self.on_thread())
    ),
    _Kind(2, "threads", lambda self: BranchCreated(name=self.chance.choice(BRANCHES), **self.on_thread())),
    _Kind(2, "threads", _Inventor.push_branch),
)


def batches(chance: Random, events: Iterable[ValueT], sizes: Sequence[int] = (1, 1, 2, 3, 8)) -> list[list[ValueT]]:
    """Splits the events into batches of random sizes."""
    remaining = list(events)
    parts = []
    while remaining:
        size = chance.choice(sizes)
        parts.append(remaining[:size])
        remaining = remaining[size:]
    return parts
