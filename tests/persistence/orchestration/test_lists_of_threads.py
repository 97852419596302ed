"""Lists over all threads: summaries, what is under way, and calls of tools without a result."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from peon.orchestration import (
    ActionApproved,
    ApprovalRequested,
    CheckpointCreated,
    MessageAppended,
    MessageChunkReceived,
    MessageContent,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import Database, ReadModel
from peon.persistence.orchestration.first_words import first_words

PROJECT, OTHER_PROJECT, FIRST, SECOND, THIRD, TURN, LATER_TURN, MESSAGE, APPROVAL, NEW = (
    UUID(int=number) for number in range(1, 11)
)
ON_TURN: dict[str, Any] = {"turn_id": TURN, "thread_id": FIRST}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def thread(thread_id: UUID, project_id: UUID = PROJECT, title: str | None = None) -> ThreadCreated:
    return ThreadCreated(
        thread_id=thread_id,
        project_id=project_id,
        title=title,
        provider=Provider.CLAUDE,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
    )


def message(
    number: int, content: MessageContent, role: MessageRole = MessageRole.USER, turn_id: UUID = TURN
) -> MessageAppended:
    return MessageAppended(message_id=UUID(int=number), turn_id=turn_id, thread_id=FIRST, role=role, content=content)


def call(number: int, tool_call_id: str, turn_id: UUID = TURN) -> MessageAppended:
    content = ToolCallContent(tool_call_id=tool_call_id, name="read", arguments={})
    return message(number, content, MessageRole.ASSISTANT, turn_id)


def result(number: int, tool_call_id: str, turn_id: UUID = TURN) -> MessageAppended:
    content = ToolResultContent(tool_call_id=tool_call_id, output=None, is_error=False)
    return message(number, content, MessageRole.TOOL, turn_id)


@pytest.fixture
def begun(database: Database) -> Database:
    """Returns a database with two projects, three threads and two running turns of the first thread."""
    projects = [ProjectCreated(project_id=each, name="tide-table", path="/") for each in (PROJECT, OTHER_PROJECT)]
    threads = [thread(FIRST), thread(SECOND, title="Tides"), thread(THIRD, OTHER_PROJECT)]
    turns = [TurnStarted(turn_id=each, thread_id=FIRST) for each in (TURN, LATER_TURN)]
    database.events.append_all([*projects, *threads, *turns])
    return database


def ids(state: ReadModel, project_id: UUID | None = None) -> list[UUID]:
    return [summary.id for summary in state.thread_summaries(project_id)]


ACTIVITIES: list[OrchestrationEvent] = [
    ThreadStatusChanged(thread_id=FIRST, status=ThreadStatus.RUNNING),
    TurnStarted(turn_id=NEW, thread_id=FIRST),
    TurnCompleted(**ON_TURN),
    message(10, TextContent(text="Ebb?")),
    ApprovalRequested(approval_id=NEW, action="write", detail=None, **ON_TURN),
    CheckpointCreated(checkpoint_id=NEW, git_ref="refs/1", **ON_TURN),
]


@pytest.mark.parametrize("activity", [pytest.param(each, id=each.type) for each in ACTIVITIES])
def test_the_thread_with_the_last_activity_is_first_whatever_the_clock_says(
    begun: Database, activity: OrchestrationEvent
) -> None:
    begun.events.append_all([TurnStarted(turn_id=MESSAGE, thread_id=SECOND)])
    assert ids(begun.read_model) == [SECOND, FIRST, THIRD]

    begun.events.append_all([activity.model_copy(update={"occurred_at": LONG_AGO})])

    assert ids(begun.read_model) == [FIRST, SECOND, THIRD]
    assert ids(begun.read_model, PROJECT) == [FIRST, SECOND]
    assert ids(begun.read_model, OTHER_PROJECT) == [THIRD]
    assert begun.read_model.thread_summaries()[0].updated_at == LONG_AGO


def test_neither_streamed_text_nor_the_selection_changes_the_order(begun: Database) -> None:
    begun.events.append_all([message(10, TextContent(text="")), TurnStarted(turn_id=MESSAGE, thread_id=SECOND)])

    streamed = MessageChunkReceived(message_id=UUID(int=10), delta="Ebb", **ON_TURN)
    begun.events.append_all([streamed, ThreadSelected(thread_id=THIRD)])

    assert ids(begun.read_model) == [SECOND, FIRST, THIRD]
    assert begun.read_model.thread_summaries()[1].updated_at == streamed.occurred_at


def test_pages_of_summaries_are_read_after_the_last_sequence(begun: Database) -> None:
    first = begun.read_model.thread_summaries(limit=1)
    rest = begun.read_model.thread_summaries(limit=5, after=first[-1].last_sequence)

    assert [summary.id for summary in (*first, *rest)] == [FIRST, THIRD, SECOND]
    assert begun.read_model.thread_summaries(after=rest[-1].last_sequence) == []
    assert begun.read_model.thread_summaries(limit=0) == []
    assert len(begun.read_model.thread_summaries(after=2**80)) == 3
    of_project = begun.read_model.thread_summaries(PROJECT, after=first[-1].last_sequence)
    assert [summary.id for summary in of_project] == [SECOND]


def test_a_summary_refuses_a_wrong_page(begun: Database) -> None:
    with pytest.raises(ValueError, match="limit"):
        begun.read_model.thread_summaries(limit=-1)
    with pytest.raises(ValueError, match="after"):
        begun.read_model.thread_summaries(after=-1)
    with pytest.raises(TypeError, match="after"):
        begun.read_model.thread_summaries(after=FIRST)  # type: ignore[arg-type]


def test_a_summary_counts_turns_messages_and_pending_approvals(begun: Database) -> None:
    approvals = [
        ApprovalRequested(approval_id=UUID(int=number), action="write", detail=None, **ON_TURN)
        for number in (20, 21, 22)
    ]
    begun.events.append_all([message(10, TextContent(text="Ebb?")), call(11, "1"), *approvals])
    begun.events.append_all([result(12, "1"), ActionApproved(approval_id=UUID(int=20), **ON_TURN)])

    first, *others = begun.read_model.thread_summaries()

    assert (first.turn_count, first.message_count, first.pending_approvals) == (2, 3, 2)
    assert first.last_sequence == begun.events.last_sequence()
    assert [(each.turn_count, each.message_count, each.pending_approvals) for each in others] == [(0, 0, 0)] * 2


def test_a_label_is_the_title_or_the_first_words(begun: Database) -> None:
    begun.events.append_all(
        [
            message(10, TextContent(text="You are an agent."), MessageRole.SYSTEM),
            message(11, ThinkingContent(text="Hm.")),
            message(12, TextContent(text=" \n")),
            message(13, TextContent(text="\nWhen is\t ebb? ")),
            message(14, TextContent(text="Never mind.")),
        ]
    )
    begun.events.append_all([message(15, TextContent(text="Still there?"))])

    assert [summary.label for summary in begun.read_model.thread_summaries()] == ["When is ebb?", None, "Tides"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (" \n\t", None),
        ("a\0b", "a\u2400b"),
        ("ebb " * 25, ("ebb " * 25).strip()),
        ("ebb " * 26, "ebb " * 24 + "ebb\u2026"),
        ("\u6f6e" * 300_000, "\u6f6e" * 99 + "\u2026"),
        (" " * 10_000 + "ebb", "ebb"),
    ],
)
def test_first_words_are_one_short_line(text: str, expected: str | None) -> None:
    assert first_words(text) == expected


def numbers(database: Database, turn_id: UUID | None = None) -> list[int]:
    return [each.id.int for each in database.read_model.unanswered_tool_calls(FIRST, turn_id=turn_id)]


def test_a_call_is_unanswered_until_its_result_arrives_in_any_turn(begun: Database) -> None:
    begun.events.append_all([call(20, "1"), call(21, "2"), call(22, "3", LATER_TURN)])
    assert numbers(begun) == [20, 21, 22]
    assert numbers(begun, TURN) == [20, 21]
    assert numbers(begun, UUID(int=99)) == []
    assert begun.read_model.unanswered_tool_calls(SECOND) == []
    assert begun.read_model.unanswered_tool_calls(SECOND, turn_id=TURN) == []

    begun.events.append_all([result(30, "1", LATER_TURN), result(31, "unknown")])

    (first, second) = begun.read_model.unanswered_tool_calls(FIRST)
    assert (first.content.tool_call_id, second.content.tool_call_id) == ("2", "3")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("messages", "unanswered"),
    [
        ([call(20, "1"), call(21, "1"), result(30, "1")], [20]),
        ([call(20, "1"), result(30, "1"), call(21, "1")], [21]),
        ([result(30, "1"), call(20, "1")], [20]),
        ([call(20, "1"), call(21, "1"), result(30, "1"), result(31, "1"), result(32, "1")], []),
        ([call(20, "a\0b"), result(30, "a\0b")], []),
        ([call(20, "x" * 10_000), result(30, "x" * 10_000), call(21, "")], [21]),
    ],
)
def test_a_result_answers_the_last_call_with_its_identifier(
    begun: Database, messages: list[OrchestrationEvent], unanswered: list[int], together: bool
) -> None:
    for batch in [messages] if together else [[each] for each in messages]:
        begun.events.append_all(batch)

    assert numbers(begun) == unanswered
    assert begun.projections.verify() == []


POSTGRESQL_PLANS: dict[str, tuple[Callable[[ReadModel], object], set[str]]] = {
    "projects": (lambda state: state.projects(limit=5), {"idx_projection_projects_sequence"}),
    "threads": (lambda state: state.threads(PROJECT, limit=5), {"idx_projection_threads_project_id_sequence"}),
    "turns": (lambda state: state.turns(FIRST, limit=5, newest_first=True), {"idx_turns_thread"}),
    "messages": (lambda state: state.messages(TURN, limit=5, newest_first=True), {"idx_messages_turn"}),
    "thread_messages": (
        lambda state: state.thread_messages(FIRST, limit=5),
        {"idx_projection_messages_thread_id_sequence"},
    ),
    "checkpoints": (lambda state: state.checkpoints(FIRST, limit=5), {"idx_checkpoints_thread_id_sequence"}),
    "commits": (lambda state: state.commits(FIRST, limit=5), {"idx_projection_commits_thread_id_sequence"}),
    "branches": (lambda state: state.branches(FIRST, limit=5), {"idx_projection_branches_thread_id_sequence"}),
    "running_turns": (lambda state: state.running_turns(limit=5), {"idx_running_turns"}),
    "pending_approvals": (lambda state: state.pending_approvals(limit=5), {"idx_pending_approvals"}),
    "unanswered_tool_calls": (
        lambda state: state.unanswered_tool_calls(FIRST, limit=5),
        {"pk_projection_open_tool_calls", "pk_projection_messages"},
    ),
    "thread_summaries": (
        lambda state: state.thread_summaries(limit=5, after=9),
        {"idx_projection_threads_last_sequence"},
    ),
    "thread_summaries of a project": (
        lambda state: state.thread_summaries(PROJECT, limit=5, after=9),
        {"idx_projection_threads_project_id_last_sequence"},
    ),
    "unfinished_work": (
        lambda state: state.unfinished_work(),
        {"idx_running_turns", "idx_pending_approvals", "idx_unfinished_threads"},
    ),
}


@pytest.mark.parametrize("name", POSTGRESQL_PLANS)
def test_postgresql_can_answer_each_list_by_its_index(
    open_empty_postgresql: Callable[..., Database], name: str
) -> None:
    read, indexes = POSTGRESQL_PLANS[name]
    database = open_empty_postgresql()
    statements: list[tuple[str, Any]] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, *_: statements.append((statement, parameters)),
    )
    read(database.read_model)
    executed = list(statements)

    with database.engine.connect() as connection:
        # The tables are empty, so reading them whole would be cheaper.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        plan = "\n".join(
            row[0]
            for statement, parameters in executed
            if not statement.startswith("LOCK")
            for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        )

    assert {index for index in indexes if index not in plan} == set()
    assert "Seq Scan" not in plan
    assert "Sort" not in plan
