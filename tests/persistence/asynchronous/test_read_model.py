"""The lists over all threads, read from an event loop."""

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import URL

from peon import AsyncDatabase
from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    MessageRole,
    ProjectCreated,
    Provider,
    RuntimeMode,
    ThreadCreated,
    ToolCallContent,
    TurnStarted,
    UnfinishedWork,
)

PROJECT, THREAD, TURN, APPROVAL, MESSAGE = (UUID(int=number) for number in range(1, 6))
ON_TURN = {"turn_id": TURN, "thread_id": THREAD}


@pytest.mark.usefixtures("migrated")
def test_what_a_killed_application_left_open_is_read_and_closed_once(url: URL) -> None:
    async def recover() -> None:
        async with await AsyncDatabase.open(url=url) as database:
            state = database.read_model
            await database.events.append_all(
                [
                    ProjectCreated(project_id=PROJECT, name="tide-table", path="/"),
                    ThreadCreated(
                        thread_id=THREAD,
                        project_id=PROJECT,
                        provider=Provider.CLAUDE,
                        model="a-model",
                        runtime_mode=RuntimeMode.SUPERVISED,
                    ),
                    TurnStarted(**ON_TURN),
                    MessageAppended(
                        message_id=MESSAGE,
                        role=MessageRole.ASSISTANT,
                        content=ToolCallContent(tool_call_id="1", name="read", arguments={}),
                        **ON_TURN,
                    ),
                    ApprovalRequested(approval_id=APPROVAL, action="write", detail=None, **ON_TURN),
                ]
            )
            assert [summary.pending_approvals for summary in await state.thread_summaries(PROJECT, limit=5)] == [1]
            assert [turn.id for turn in await state.running_turns()] == [TURN]
            assert [approval.id for approval in await state.pending_approvals()] == [APPROVAL]
            assert [call.id for call in await state.unanswered_tool_calls(THREAD, turn_id=TURN)] == [MESSAGE]

            async def close(unfinished: UnfinishedWork) -> list[int]:
                stored = await database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)
                return [each.sequence for each in stored]

            # Both have read before one of them writes.
            found = [await state.unfinished_work() for _ in range(2)]
            assert await asyncio.gather(*map(close, found)) == [[6, 7], [6, 7]]
            assert await state.running_turns() == []
            assert await state.pending_approvals() == []

    asyncio.run(recover())
