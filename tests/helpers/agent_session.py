"""A long session of several agents, as a list of events."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

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
)

if TYPE_CHECKING:
    pass
from helpers.random_events import BRANCHES, DETAILS, NOWHERE, START, TEXTS_WITH_NUL


def long_session(turns: int, seed: int = 1) -> list[OrchestrationEvent]:
    """Returns the events of agents that work in several threads at once; none contradicts another.

    Each turn streams to two messages at once; some turns stream on after they have ended. Some threads and projects
    are deleted.
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
        """The threads of each project."""
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
        """Sometimes deletes a project or a thread, unless one of its turns is running."""
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
