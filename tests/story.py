"""What events say, told once more in plain Python, for comparison with what the projections hold.

`Story` follows events by the rules of the domain alone: no SQL, and nothing of `peon.persistence`. `invented` and
`long_session` make events up. `state_of` reads a database in the shape of `Story.state`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
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
    MessageContent,
    MessageRole,
    OrchestrationEvent,
    Project,
    ProjectCreated,
    ProjectDeleted,
    ProjectRenamed,
    Provider,
    RuntimeMode,
    Snapshot,
    TextContent,
    ThinkingContent,
    Thread,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
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

STORED_AS_PLAIN_TEXT: dict[type, tuple[str, ...]] = {
    ProjectCreated: ("name", "path"),
    ProjectRenamed: ("name",),
    ThreadCreated: ("title", "model"),
    ThreadStatusChanged: ("error",),
    TurnFailed: ("error",),
    ApprovalRequested: ("action",),
    ActionRejected: ("reason",),
    CheckpointCreated: ("git_ref",),
    ChangesCommitted: ("commit", "message"),
    BranchCreated: ("name",),
    BranchPushed: ("name", "remote"),
}
"""The fields in which PostgreSQL cannot hold a NUL character."""


@dataclass
class Story:
    """All that events have said so far. Each dictionary is in the order in which its members were created.

    Attributes:
        without_nul: Whether text with a NUL character is refused, as on PostgreSQL.
        sequence: Of the last event, followed or not.
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

    def copy(self) -> "Story":
        members = {name: copy(value) for name, value in vars(self).items()}
        return Story(**members)

    def follow(self, event: OrchestrationEvent) -> str | None:
        """Takes in the next event of the log, or passes over it and returns what it contradicts."""
        reason = self.contradiction_of(event)
        self.sequence += 1
        if reason is None:
            self._take_in(event)
        return reason

    def follow_all(self, events: Iterable[OrchestrationEvent]) -> dict[int, str]:
        """Returns, by sequence, what the events contradict that were passed over."""
        reasons = {}
        for event in events:
            reason = self.follow(event)
            if reason is not None:
                reasons[self.sequence] = reason
        return reasons

    def index_of_contradiction(self, batch: Sequence[OrchestrationEvent]) -> int | None:
        """Returns the place in the batch of the first event that must be refused; takes nothing in."""
        reasons = self.copy().follow_all(batch)
        return min(reasons) - self.sequence - 1 if reasons else None

    def contradiction_of(self, event: OrchestrationEvent) -> str | None:
        for name in STORED_AS_PLAIN_TEXT.get(type(event), ()):
            if self.without_nul and "\0" in (getattr(event, name) or ""):
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
                _change(self.threads, event.thread_id, updated_at=event.occurred_at)

    def _create_thread(self, event: ThreadCreated) -> None:
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
        del self.threads[thread_id]
        of_thread: list[dict[Any, Any]] = [self.turns, self.checkpoints, self.approvals, self.commits, self.branches]
        for members in of_thread:
            for key, member in list(members.items()):
                if member.thread_id == thread_id:
                    del members[key]
        for message_id, owner in list(self.threads_of_messages.items()):
            if owner == thread_id:
                del self.messages[message_id], self.threads_of_messages[message_id]
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
            "snapshot": self.snapshot(),
        }

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


def _taken(known: dict[UUID, Any], identifier: UUID) -> str | None:
    return "created twice" if identifier in known else None


def _unknown(known: dict[UUID, Any], identifier: UUID) -> str | None:
    return None if identifier in known else "unknown"


def _change(members: dict[Any, Any], key: object, **changes: object) -> None:
    members[key] = members[key].model_copy(update=changes)


def state_of(read: "ReadModel", approvals: Iterable[UUID] = ()) -> State:
    """Reads all there is, list by list and as a snapshot.

    Args:
        read: Of the database.
        approvals: Those that may be there: the lists hold the pending ones alone.
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
        "snapshot": read.snapshot(),
    }


START = datetime(2026, 5, 17, 8, 30, tzinfo=UTC)


def identifiers(kind: int, count: int) -> list[UUID]:
    return [UUID(int=kind << 32 | number) for number in range(1, count + 1)]


PROJECTS = identifiers(1, 2)
THREADS = identifiers(2, 3)
TURNS = identifiers(3, 4)
MESSAGES = identifiers(4, 5)
CHECKPOINTS = identifiers(5, 3)
APPROVALS = identifiers(6, 4)
BRANCHES = ["main", "tide", "Flut/ebbe"]
NOWHERE = UUID(int=2**128 - 1)

TEXTS = ["", "ebb", 'It\'s "quoted" \\ %s :name ?', "\N{WATER WAVE} über\u2028", "one\ntwo\x7f"]
TEXTS_WITH_NUL = [*TEXTS, "a\0b"]
DETAILS: list[Any] = [None, "a\0b", {"command": "ls", "text": "x"}, [1.5, True, {"deep": []}], 10**40, {}]


def invented(chance: Random, story: Story, count: int, *, contradictions: float = 0.0) -> Iterator[OrchestrationEvent]:
    """Yields events that go on with the story, which stays as it is; of them, a share of contradictory ones.

    The identifiers are few, so that they collide, are deleted, and come again.
    """
    inventor = _Inventor(chance, story.copy())
    for _ in range(count):
        event = inventor.invent(contradictory=contradictions > 0 and chance.random() < contradictions)
        inventor.story.follow(event)
        yield event


class _Kind(NamedTuple):
    weight: int
    needs: str
    """The members of a story of which there must be one."""
    invent: "Callable[[_Inventor], OrchestrationEvent]"


class _Inventor:
    def __init__(self, chance: Random, story: Story) -> None:
        self.chance = chance
        self.story = story
        self.wild = False
        self.earlier: list[OrchestrationEvent] = []

    def invent(self, *, contradictory: bool) -> OrchestrationEvent:
        self.wild = contradictory
        possible = [kind for kind in _KINDS if contradictory or not kind.needs or getattr(self.story, kind.needs)]
        for _ in range(8):
            event = self.candidate(possible)
            if (self.story.contradiction_of(event) is not None) is contradictory:
                return event
        if contradictory:
            return ProjectRenamed(project_id=NOWHERE, name="", occurred_at=self.moment())
        if self.story.projects:
            return ProjectRenamed(project_id=next(iter(self.story.projects)), name="", occurred_at=self.moment())
        return ProjectCreated(project_id=PROJECTS[0], name="", path="", occurred_at=self.moment())

    def candidate(self, possible: list[_Kind]) -> OrchestrationEvent:
        if self.wild and self.earlier and not self.chance.randrange(6):
            return self.chance.choice(self.earlier)
        (kind,) = self.chance.choices(possible, [kind.weight for kind in possible])
        event = kind.invent(self)
        self.earlier.append(event)
        return event

    def moment(self) -> datetime:
        """Clocks go back, too."""
        return START + timedelta(microseconds=self.chance.randrange(10**9))

    def text(self) -> str:
        """For a field of plain text."""
        return self.chance.choice(TEXTS if self.story.without_nul and not self.wild else TEXTS_WITH_NUL)

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
        return self.known(self.story.threads, THREADS)

    def on_thread(self) -> dict[str, Any]:
        return {"thread_id": self.thread(), "occurred_at": self.moment()}

    def of_turn(self, turn_id: UUID) -> dict[str, Any]:
        """With the right thread; wild, with any."""
        turn = self.story.turns.get(turn_id)
        if turn is None or (self.wild and self.chance.randrange(2)):
            return {"turn_id": turn_id, **self.on_thread()}
        return {"turn_id": turn_id, "thread_id": turn.thread_id, "occurred_at": self.moment()}

    def on_turn(self) -> dict[str, Any]:
        return self.of_turn(self.known(self.story.turns, TURNS))

    def on_running_turn(self) -> dict[str, Any]:
        running = [turn.id for turn in self.story.turns.values() if turn.status is TurnStatus.RUNNING]
        return self.of_turn(self.known([] if self.wild else running, TURNS))

    def on_turn_of(self, part: Message | Approval | None) -> dict[str, Any]:
        if part is None or (self.wild and self.chance.randrange(2)):
            return self.on_turn()
        return self.of_turn(part.turn_id)

    def content(self) -> MessageContent:
        match self.chance.randrange(8):
            case 0:
                return ToolCallContent(tool_call_id="1", name="a\0b", arguments={"text": self.chance.choice(DETAILS)})
            case 1:
                return ToolResultContent(tool_call_id="1", output=self.chance.choice(DETAILS), is_error=True)
            case 2 | 3:
                return ThinkingContent(text=self.chance.choice(TEXTS_WITH_NUL))
            case _:
                return TextContent(text=self.chance.choice(TEXTS_WITH_NUL))

    def create_project(self) -> OrchestrationEvent:
        project_id = self.new(self.story.projects, PROJECTS)
        return ProjectCreated(project_id=project_id, name=self.text(), path=self.text(), occurred_at=self.moment())

    def rename_project(self) -> OrchestrationEvent:
        project_id = self.known(self.story.projects, PROJECTS)
        return ProjectRenamed(project_id=project_id, name=self.text(), occurred_at=self.moment())

    def delete_project(self) -> OrchestrationEvent:
        return ProjectDeleted(project_id=self.known(self.story.projects, PROJECTS), occurred_at=self.moment())

    def create_thread(self) -> OrchestrationEvent:
        return ThreadCreated(
            thread_id=self.new(self.story.threads, THREADS),
            project_id=self.known(self.story.projects, PROJECTS),
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
        return TurnStarted(turn_id=self.new(self.story.turns, TURNS), **self.on_thread())

    def append_message(self) -> OrchestrationEvent:
        return MessageAppended(
            message_id=self.new(self.story.messages, MESSAGES),
            role=self.chance.choice(list(MessageRole)),
            content=self.content(),
            **self.on_turn(),
        )

    def receive_chunk(self) -> OrchestrationEvent:
        message_id = self.known(self.story.messages, MESSAGES)
        place = self.on_turn_of(self.story.messages.get(message_id))
        return MessageChunkReceived(message_id=message_id, delta=self.chance.choice(TEXTS_WITH_NUL), **place)

    def request_approval(self) -> OrchestrationEvent:
        approval_id = self.new(self.story.approvals, APPROVALS)
        detail = self.chance.choice(DETAILS)
        return ApprovalRequested(approval_id=approval_id, action=self.text(), detail=detail, **self.on_turn())

    def approve(self) -> OrchestrationEvent:
        approval_id = self.known(self.story.approvals, APPROVALS)
        return ActionApproved(approval_id=approval_id, **self.on_turn_of(self.story.approvals.get(approval_id)))

    def reject(self) -> OrchestrationEvent:
        approval_id = self.known(self.story.approvals, APPROVALS)
        reason = self.chance.choice([None, self.text()])
        place = self.on_turn_of(self.story.approvals.get(approval_id))
        return ActionRejected(approval_id=approval_id, reason=reason, **place)

    def create_checkpoint(self) -> OrchestrationEvent:
        checkpoint_id = self.new(self.story.checkpoints, CHECKPOINTS)
        return CheckpointCreated(checkpoint_id=checkpoint_id, git_ref=self.text(), **self.on_turn())

    def restore_checkpoint(self) -> OrchestrationEvent:
        checkpoint = self.story.checkpoints.get(self.known(self.story.checkpoints, CHECKPOINTS))
        place = self.on_thread()
        if checkpoint is None or (self.wild and self.chance.randrange(2)):
            return CheckpointRestored(checkpoint_id=self.chance.choice(CHECKPOINTS), **place)
        return CheckpointRestored(checkpoint_id=checkpoint.id, **place | {"thread_id": checkpoint.thread_id})

    def push_branch(self) -> OrchestrationEvent:
        name = self.chance.choice([*BRANCHES, self.text()])
        return BranchPushed(name=name, remote=self.text(), **self.on_thread())


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
    _Kind(2, "threads", lambda self: ChangesCommitted(commit=self.text(), message=self.text(), **self.on_thread())),
    _Kind(2, "threads", lambda self: BranchCreated(name=self.chance.choice(BRANCHES), **self.on_thread())),
    _Kind(2, "threads", _Inventor.push_branch),
)


def batches(chance: Random, events: Iterable[ValueT], sizes: Sequence[int] = (1, 1, 2, 3, 8)) -> list[list[ValueT]]:
    """Splits the events anyhow."""
    remaining = list(events)
    parts = []
    while remaining:
        size = chance.choice(sizes)
        parts.append(remaining[:size])
        remaining = remaining[size:]
    return parts


def long_session(turns: int, seed: int = 1) -> list[OrchestrationEvent]:
    """Returns what agents in several threads do at the same time; none of it contradicts the rest.

    Each turn streams to two messages at once, and some stream on after their end. Threads and projects are deleted.
    """
    session = _Session(Random(seed))
    running: list[tuple[UUID, Iterator[OrchestrationEvent]]] = []
    events: list[OrchestrationEvent] = []
    while turns or running:
        if turns and len(running) < 3:
            events += session.choose_thread()
            running.append((session.thread, session.turn(session.thread)))
            turns -= 1
        turn = session.chance.choice(running)
        event = next(turn[1], None)
        if event is not None:
            events.append(event)
        else:
            running.remove(turn)
            events += session.delete_something({thread for thread, _ in running})
    return events


class _Session:
    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.count = 0
        self.threads: dict[UUID, list[UUID]] = {}
        """By project."""
        self.thread = NOWHERE

    def new(self) -> UUID:
        self.count += 1
        return UUID(int=self.chance.getrandbits(96) << 32 | self.count)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.count, microseconds=self.chance.randrange(10**6))

    def choose_thread(self) -> Iterator[OrchestrationEvent]:
        if len(self.threads) < 3:
            project = self.new()
            self.threads[project] = []
            path = f"/home/ada/{project}"
            yield ProjectCreated(project_id=project, name="tide-table", path=path, occurred_at=self.now())
        project = self.chance.choice(list(self.threads))
        if len(self.threads[project]) < 4:
            thread = self.new()
            self.threads[project].append(thread)
            yield ThreadCreated(
                thread_id=thread,
                project_id=project,
                title=self.chance.choice([None, "Spring tides"]),
                provider=self.chance.choice(list(Provider)),
                model="a-model",
                runtime_mode=RuntimeMode.SUPERVISED,
                occurred_at=self.now(),
            )
        self.thread = self.chance.choice(self.threads[project])
        yield ThreadSelected(thread_id=self.thread, occurred_at=self.now())
        yield BranchCreated(thread_id=self.thread, name=self.chance.choice(BRANCHES), occurred_at=self.now())
        yield ProjectRenamed(project_id=project, name=f"tide-table {self.count}", occurred_at=self.now())

    def turn(self, thread: UUID) -> Iterator[OrchestrationEvent]:
        chance = self.chance
        place: dict[str, Any] = {"turn_id": self.new(), "thread_id": thread}
        say, think, approval, checkpoint = self.new(), self.new(), self.new(), self.new()

        def at() -> dict[str, Any]:
            return {**place, "occurred_at": self.now()}

        def message(identifier: UUID, role: MessageRole, content: MessageContent) -> OrchestrationEvent:
            return MessageAppended(message_id=identifier, role=role, content=content, **at())

        def chunk(identifier: UUID) -> OrchestrationEvent:
            return MessageChunkReceived(message_id=identifier, delta=chance.choice(TEXTS_WITH_NUL), **at())

        yield TurnStarted(**at())
        yield ThreadStatusChanged(thread_id=thread, status=ThreadStatus.RUNNING, occurred_at=self.now())
        yield message(self.new(), MessageRole.USER, TextContent(text="When is high water?"))
        yield message(think, MessageRole.ASSISTANT, ThinkingContent(text="Hm. "))
        yield message(say, MessageRole.ASSISTANT, TextContent(text=""))
        for _ in range(chance.randrange(12)):
            yield chunk(chance.choice([say, think]))
        if chance.randrange(2):
            call = ToolCallContent(tool_call_id="1", name="shell", arguments={"command": "ls"})
            yield message(self.new(), MessageRole.ASSISTANT, call)
            yield ApprovalRequested(approval_id=approval, action="shell", detail=chance.choice(DETAILS), **at())
            decision = chance.randrange(4)
            if decision == 0:
                yield ActionRejected(approval_id=approval, reason=chance.choice([None, "No."]), **at())
            elif decision < 3:
                yield ActionApproved(approval_id=approval, **at())
            result = ToolResultContent(tool_call_id="1", output=chance.choice(DETAILS), is_error=False)
            yield message(self.new(), MessageRole.TOOL, result)
        if chance.randrange(3) == 0:
            yield CheckpointCreated(checkpoint_id=checkpoint, git_ref=f"refs/peon/{self.count}", **at())
            yield CheckpointRestored(checkpoint_id=checkpoint, thread_id=thread, occurred_at=self.now())
            yield ChangesCommitted(thread_id=thread, commit="c0ffee", message="Tides", occurred_at=self.now())
            name = chance.choice(BRANCHES)
            yield BranchPushed(thread_id=thread, name=name, remote="origin", occurred_at=self.now())
        for _ in range(chance.randrange(6)):
            yield chunk(chance.choice([say, think]))
        end = chance.randrange(10)
        if end == 0:
            yield TurnInterrupted(**at())
        elif end == 1:
            yield TurnFailed(error="overloaded", **at())
            error = {"status": ThreadStatus.ERROR, "error": "overloaded"}
            yield ThreadStatusChanged(thread_id=thread, occurred_at=self.now(), **error)
        elif end > 2:
            yield TurnCompleted(**at())
        if chance.randrange(4) == 0:
            yield chunk(say)
            yield message(self.new(), MessageRole.SYSTEM, TextContent(text="Late."))

    def delete_something(self, busy: set[UUID]) -> Iterator[OrchestrationEvent]:
        """At times, and only where no turn goes on."""
        project = self.chance.choice(list(self.threads))
        threads = self.threads[project]
        idle = [thread for thread in threads if thread not in busy]
        what = self.chance.randrange(60)
        if what < 3 and idle:
            thread = self.chance.choice(idle)
            threads.remove(thread)
            yield ThreadDeleted(thread_id=thread, occurred_at=self.now())
        elif what == 3 and idle == threads and len(self.threads) > 1:
            del self.threads[project]
            yield ProjectDeleted(project_id=project, occurred_at=self.now())
