"""`ReadModel` for an event loop."""

from uuid import UUID

from peon.orchestration import (
    Approval,
    Branch,
    Checkpoint,
    Commit,
    Message,
    Project,
    Snapshot,
    Thread,
    ThreadSummary,
    ToolCallMessage,
    Turn,
    UnfinishedWork,
)
from peon.persistence.asynchronous.greenlets import Calls
from peon.persistence.orchestration.read_model import ReadModel


class AsyncReadModel:
    """What the domain's projection holds, as values of the domain. See `ReadModel`."""

    def __init__(self, read_model: ReadModel, calls: Calls) -> None:
        self._read_model = read_model
        self._calls = calls

    async def projects(
        self, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Project]:
        """See `ReadModel.projects`."""
        return await self._calls.run(self._read_model.projects, limit=limit, after=after, newest_first=newest_first)

    async def project(self, project_id: UUID) -> Project | None:
        """See `ReadModel.project`."""
        return await self._calls.run(self._read_model.project, project_id)

    async def threads(
        self, project_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Thread]:
        """See `ReadModel.threads`."""
        return await self._calls.run(
            self._read_model.threads, project_id, limit=limit, after=after, newest_first=newest_first
        )

    async def thread(self, thread_id: UUID) -> Thread | None:
        """See `ReadModel.thread`."""
        return await self._calls.run(self._read_model.thread, thread_id)

    async def thread_summaries(
        self, project_id: UUID | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[ThreadSummary]:
        """See `ReadModel.thread_summaries`."""
        return await self._calls.run(self._read_model.thread_summaries, project_id, limit=limit, after=after)

    async def selected_thread(self) -> Thread | None:
        """See `ReadModel.selected_thread`."""
        return await self._calls.run(self._read_model.selected_thread)

    async def turns(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Turn]:
        """See `ReadModel.turns`."""
        return await self._calls.run(
            self._read_model.turns, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def turn(self, turn_id: UUID) -> Turn | None:
        """See `ReadModel.turn`."""
        return await self._calls.run(self._read_model.turn, turn_id)

    async def running_turns(
        self, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Turn]:
        """See `ReadModel.running_turns`."""
        return await self._calls.run(
            self._read_model.running_turns, limit=limit, after=after, newest_first=newest_first
        )

    async def messages(
        self, turn_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Message]:
        """See `ReadModel.messages`."""
        return await self._calls.run(
            self._read_model.messages, turn_id, limit=limit, after=after, newest_first=newest_first
        )

    async def thread_messages(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Message]:
        """See `ReadModel.thread_messages`."""
        return await self._calls.run(
            self._read_model.thread_messages, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def message(self, message_id: UUID) -> Message | None:
        """See `ReadModel.message`."""
        return await self._calls.run(self._read_model.message, message_id)

    async def unanswered_tool_calls(
        self,
        thread_id: UUID,
        *,
        turn_id: UUID | None = None,
        limit: int | None = None,
        after: UUID | None = None,
        newest_first: bool = False,
    ) -> list[ToolCallMessage]:
        """See `ReadModel.unanswered_tool_calls`."""
        return await self._calls.run(
            self._read_model.unanswered_tool_calls,
            thread_id,
            turn_id=turn_id,
            limit=limit,
            after=after,
            newest_first=newest_first,
        )

    async def checkpoints(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Checkpoint]:
        """See `ReadModel.checkpoints`."""
        return await self._calls.run(
            self._read_model.checkpoints, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def checkpoint(self, checkpoint_id: UUID) -> Checkpoint | None:
        """See `ReadModel.checkpoint`."""
        return await self._calls.run(self._read_model.checkpoint, checkpoint_id)

    async def pending_approvals(
        self,
        thread_id: UUID | None = None,
        *,
        limit: int | None = None,
        after: UUID | None = None,
        newest_first: bool = False,
    ) -> list[Approval]:
        """See `ReadModel.pending_approvals`."""
        return await self._calls.run(
            self._read_model.pending_approvals, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def approval(self, approval_id: UUID) -> Approval | None:
        """See `ReadModel.approval`."""
        return await self._calls.run(self._read_model.approval, approval_id)

    async def commits(
        self, thread_id: UUID, *, limit: int | None = None, after: int | None = None, newest_first: bool = False
    ) -> list[Commit]:
        """See `ReadModel.commits`."""
        return await self._calls.run(
            self._read_model.commits, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def branches(
        self, thread_id: UUID, *, limit: int | None = None, after: str | None = None, newest_first: bool = False
    ) -> list[Branch]:
        """See `ReadModel.branches`."""
        return await self._calls.run(
            self._read_model.branches, thread_id, limit=limit, after=after, newest_first=newest_first
        )

    async def unfinished_work(self) -> UnfinishedWork:
        """See `ReadModel.unfinished_work`."""
        return await self._calls.run(self._read_model.unfinished_work)

    async def snapshot(self, *, messages: bool = True) -> Snapshot:
        """See `ReadModel.snapshot`."""
        return await self._calls.run(self._read_model.snapshot, messages=messages)
