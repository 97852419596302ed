"""What the read model returns, in which order, and from which state."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.agent_session import long_session
from helpers.event_strategies import json_values, message_contents, texts
from helpers.slow_proofs import rest_is_slow
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError
from sqlalchemy import URL, event, text

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
    MessageContent,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    Snapshot,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ToolCallContent,
    TurnCompleted,
    TurnStarted,
)
from peon.orchestration.model import Value
from peon.persistence import Database, PersistenceError, ReadModel, StoreUnavailable

PROJECT, THREAD, TURN = (UUID(int=number) for number in (1, 2, 3))
PLACE = {"turn_id": TURN, "thread_id": THREAD}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
COUNT = 7

Members = list[Any]
List = Callable[..., Members]


def project(identifier: UUID = PROJECT) -> ProjectCreated:
    # Times decrease, and many are equal: lists must follow the order of the log.
    return ProjectCreated(project_id=identifier, name=str(identifier), path="/", occurred_at=LONG_AGO)


def thread(identifier: UUID = THREAD, project_id: UUID = PROJECT) -> ThreadCreated:
    return ThreadCreated(
        thread_id=identifier,
        project_id=project_id,
        provider=Provider.CODEX,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
        occurred_at=LONG_AGO - timedelta(days=identifier.int % 3),
    )


def message(identifier: UUID, content: MessageContent | None = None, turn_id: UUID = TURN) -> MessageAppended:
    return MessageAppended(
        message_id=identifier,
        turn_id=turn_id,
        thread_id=THREAD,
        role=MessageRole.ASSISTANT,
        content=content or TextContent(text=""),
        occurred_at=LONG_AGO,
    )


def chunk(identifier: UUID, delta: str, turn_id: UUID = TURN) -> MessageChunkReceived:
    return MessageChunkReceived(message_id=identifier, turn_id=turn_id, thread_id=THREAD, delta=delta)


@pytest.fixture
def begun(database: Database) -> Database:
    """Returns a database with a project, a thread and a turn."""
    database.events.append_all([project(), thread(), TurnStarted(**PLACE)])
    return database


LISTS: dict[str, tuple[Callable[[ReadModel], List], Callable[[int], OrchestrationEvent], str]] = {
    "projects": (lambda state: state.projects, lambda n: project(UUID(int=n)), "id"),
    "threads": (
        lambda state: lambda **page: state.threads(PROJECT, **page),
        lambda n: thread(UUID(int=n)),
        "id",
    ),
    "turns": (
        lambda state: lambda **page: state.turns(THREAD, **page),
        lambda n: TurnStarted(turn_id=UUID(int=n), thread_id=THREAD, occurred_at=LONG_AGO),
        "id",
    ),
    "running_turns": (
        lambda state: state.running_turns,
        lambda n: TurnStarted(turn_id=UUID(int=n), thread_id=THREAD, occurred_at=LONG_AGO),
        "id",
    ),
    "messages": (lambda state: lambda **page: state.messages(TURN, **page), lambda n: message(UUID(int=n)), "id"),
    "thread_messages": (
        lambda state: lambda **page: state.thread_messages(THREAD, **page),
        lambda n: message(UUID(int=n)),
        "id",
    ),
    "checkpoints": (
        lambda state: lambda **page: state.checkpoints(THREAD, **page),
        lambda n: CheckpointCreated(checkpoint_id=UUID(int=n), git_ref=str(n), occurred_at=LONG_AGO, **PLACE),
        "id",
    ),
    "pending_approvals": (
        lambda state: lambda **page: state.pending_approvals(THREAD, **page),
        lambda n: ApprovalRequested(approval_id=UUID(int=n), action="write", detail=n, occurred_at=LONG_AGO, **PLACE),
        "id",
    ),
    "pending_approvals of all threads": (
        lambda state: state.pending_approvals,
        lambda n: ApprovalRequested(approval_id=UUID(int=n), action="write", detail=n, occurred_at=LONG_AGO, **PLACE),
        "id",
    ),
    "unanswered_tool_calls": (
        lambda state: lambda **page: state.unanswered_tool_calls(THREAD, **page),
        lambda n: message(UUID(int=n), ToolCallContent(tool_call_id=str(n), name="read", arguments={})),
        "id",
    ),
    "unanswered_tool_calls of a turn": (
        lambda state: lambda **page: state.unanswered_tool_calls(THREAD, turn_id=TURN, **page),
        lambda n: message(UUID(int=n), ToolCallContent(tool_call_id="same", name="read", arguments={})),
        "id",
    ),
    "commits": (
        lambda state: lambda **page: state.commits(THREAD, **page),
        lambda n: ChangesCommitted(thread_id=THREAD, commit=str(n % 3), message=str(n), occurred_at=LONG_AGO),
        "sequence",
    ),
    "branches": (
        lambda state: lambda **page: state.branches(THREAD, **page),
        lambda n: BranchCreated(thread_id=THREAD, name=str(n), occurred_at=LONG_AGO),
        "name",
    ),
}


@pytest.mark.parametrize("name", LISTS)
class TestLists:
    @pytest.fixture
    def numbers(self) -> list[int]:
        numbers = list(range(100, 100 + COUNT))
        Random(1).shuffle(numbers)
        return numbers

    def test_members_are_in_order_of_creation(self, begun: Database, name: str, numbers: list[int]) -> None:
        listed, created, key = LISTS[name]
        before = len(listed(begun.read_model)())
        for number in numbers:
            begun.events.append_all([created(number)])

        members = listed(begun.read_model)()

        made: list[Any] = [created(number) for number in numbers]
        expected = {
            "id": [str(UUID(int=number)) for number in numbers],
            "name": [getattr(branch, "name", None) for branch in made],
            "sequence": [str(4 + number) for number in range(COUNT)],
        }[key]
        assert [str(getattr(member, key)) for member in members[before:]] == expected
        assert listed(begun.read_model)(newest_first=True) == members[::-1]

    def test_joined_pages_equal_the_list(self, begun: Database, name: str, numbers: list[int]) -> None:
        listed, created, key = LISTS[name]
        begun.events.append_all([created(number) for number in numbers])

        for newest_first in (False, True):
            whole = listed(begun.read_model)(newest_first=newest_first)
            for limit in (1, 3, COUNT):
                pages = list(pages_of(listed(begun.read_model), key, limit, newest_first=newest_first))

                assert [member for page in pages for member in page] == whole, (newest_first, limit)
                assert all(len(page) == limit for page in pages[:-1]), (newest_first, limit)

    def test_pages_lose_and_repeat_nothing_during_appends(self, begun: Database, name: str, numbers: list[int]) -> None:
        listed, created, key = LISTS[name]
        begun.events.append_all([created(number) for number in numbers])
        before = listed(begun.read_model)()
        seen: Members = []
        for page in pages_of(listed(begun.read_model), key, 2, newest_first=False):
            seen += page
            if len(seen) < 20:
                begun.events.append_all([created(1_000 + len(seen))])

        assert seen[: len(before)] == before
        assert seen == listed(begun.read_model)()

    def test_a_limit_of_zero_is_empty_and_what_is_wrong_is_refused(self, begun: Database, name: str) -> None:
        listed, created, key = LISTS[name]
        begun.events.append_all([created(100)])

        assert listed(begun.read_model)(limit=0) == []
        with pytest.raises(ValueError, match="limit"):
            listed(begun.read_model)(limit=-1)
        with pytest.raises(LookupError, match="does not exist"):
            listed(begun.read_model)(after={"id": uuid4(), "sequence": 10**6, "name": "no branch"}[key])


def pages_of(listed: List, key: str, limit: int, *, newest_first: bool) -> Iterator[Members]:
    after: Any = {}
    while page := listed(limit=limit, newest_first=newest_first, **after):
        yield page
        after = {"after": getattr(page[-1], key)}


def test_a_missing_value_is_none_or_an_empty_list(database: Database) -> None:
    state, unknown = database.read_model, uuid4()

    for one in (state.project, state.thread, state.turn, state.message, state.checkpoint, state.approval):
        assert one(unknown) is None
    assert state.selected_thread() is None
    assert [state.projects(), state.running_turns(), state.pending_approvals(), state.thread_summaries()] == [[]] * 4
    for many in (
        state.threads,
        state.turns,
        state.messages,
        state.thread_messages,
        state.unanswered_tool_calls,
        state.thread_summaries,
        state.checkpoints,
        state.pending_approvals,
        state.commits,
        state.branches,
    ):
        assert many(unknown) == []
    assert state.snapshot() == Snapshot(
        sequence=0,
        projects=(),
        threads=(),
        turns=(),
        messages=(),
        checkpoints=(),
        pending_approvals=(),
        commits=(),
        branches=(),
        selected_thread_id=None,
    )


def test_an_after_of_another_list_is_refused(begun: Database) -> None:
    other = UUID(int=9)
    begun.events.append_all([thread(other), TurnStarted(turn_id=other, thread_id=other), message(uuid4())])

    with pytest.raises(LookupError):
        begun.read_model.turns(THREAD, after=other)
    with pytest.raises(LookupError):
        begun.read_model.commits(THREAD, after=2**64)


@pytest.mark.parametrize("limit", [1.5, "5", True])
def test_a_limit_must_be_an_integer(begun: Database, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit"):
        begun.read_model.projects(limit=limit)


def test_a_limit_may_exceed_the_length_of_any_list(begun: Database) -> None:
    assert len(begun.read_model.projects(limit=2**70)) == 1


def test_an_after_that_was_deleted_is_refused(begun: Database) -> None:
    begun.events.append_all([thread(UUID(int=9)), ThreadDeleted(thread_id=UUID(int=9))])

    with pytest.raises(LookupError):
        begun.read_model.threads(PROJECT, after=UUID(int=9))


def test_values_are_frozen(begun: Database) -> None:
    value = begun.read_model.project(PROJECT)

    with pytest.raises(ValidationError):
        value.name = "another"  # type: ignore[misc, union-attr]


def test_the_selected_thread_is_the_last_one_selected_until_it_is_deleted(begun: Database) -> None:
    other = UUID(int=9)
    begun.events.append_all([thread(other), ThreadSelected(thread_id=THREAD), ThreadSelected(thread_id=other)])
    assert begun.read_model.selected_thread() == begun.read_model.thread(other)
    assert begun.read_model.snapshot().selected_thread_id == other

    begun.events.append_all([ThreadDeleted(thread_id=other)])
    assert begun.read_model.selected_thread() is None


def test_an_approval_is_pending_until_it_is_decided(begun: Database) -> None:
    ids = [uuid4() for _ in range(3)]
    begun.events.append_all(
        [ApprovalRequested(approval_id=identifier, action="write", detail=[1], **PLACE) for identifier in ids]
    )
    begun.events.append_all(
        [
            ActionApproved(approval_id=ids[0], **PLACE),
            ActionRejected(approval_id=ids[2], reason="no", occurred_at=LONG_AGO, **PLACE),
        ]
    )

    assert [approval.id for approval in begun.read_model.pending_approvals(THREAD)] == [ids[1]]
    # A page may start after an approval that was decided meanwhile.
    assert [approval.id for approval in begun.read_model.pending_approvals(THREAD, after=ids[0])] == [ids[1]]
    rejected = begun.read_model.approval(ids[2])
    assert rejected is not None
    assert (rejected.status, rejected.reason, rejected.decided_at) == (ApprovalStatus.REJECTED, "no", LONG_AGO)


def test_a_checkpoint_has_the_time_of_its_last_restore(begun: Database) -> None:
    identifier = uuid4()
    begun.events.append_all([CheckpointCreated(checkpoint_id=identifier, git_ref="refs/1", **PLACE)])
    assert begun.read_model.checkpoints(THREAD)[0].restored_at is None

    begun.events.append_all([CheckpointRestored(checkpoint_id=identifier, thread_id=THREAD, occurred_at=LONG_AGO)])
    assert begun.read_model.checkpoints(THREAD)[0].restored_at == LONG_AGO


def test_a_branch_can_be_pushed_without_being_created_first(begun: Database) -> None:
    begun.events.append_all(
        [
            BranchCreated(thread_id=THREAD, name="tides", occurred_at=LONG_AGO),
            BranchPushed(thread_id=THREAD, name="main", remote="origin"),
            BranchPushed(thread_id=THREAD, name="tides", remote="fork"),
        ]
    )

    tides, main = begun.read_model.branches(THREAD)
    assert (tides.name, tides.created_at, tides.remote) == ("tides", LONG_AGO, "fork")
    assert (main.name, main.created_at, main.remote) == ("main", None, "origin")


class TestStreamedText:
    def texts_of(self, database: Database, identifier: UUID) -> set[str]:
        """Returns the message as each query returns it."""
        state = database.read_model
        found = [
            state.message(identifier),
            *[m for m in state.messages(TURN) if m.id == identifier],
            *[m for m in state.thread_messages(THREAD, limit=50, newest_first=True) if m.id == identifier],
            *[m for m in state.snapshot().messages if m.id == identifier],
        ]
        assert len(found) == 4
        return {m.content.text for m in found}  # type: ignore[union-attr]

    @pytest.mark.postgresql_too("how text is joined")
    @pytest.mark.parametrize("kind", [TextContent, ThinkingContent])
    def test_belongs_to_the_message_before_and_after_the_end_of_the_turn(
        self, begun: Database, kind: type[TextContent]
    ) -> None:
        one, two = uuid4(), uuid4()
        begun.events.append_all([message(one, kind(text="a\0")), message(two), chunk(one, "b\0é"), chunk(two, "x")])
        assert self.texts_of(begun, one) == {"a\0b\0é"}

        begun.events.append_all([chunk(two, "y"), chunk(one, "🌊"), chunk(two, "z")])
        assert self.texts_of(begun, one) == {"a\0b\0é🌊"}
        assert self.texts_of(begun, two) == {"xyz"}

        begun.events.append_all([chunk(one, "d"), TurnCompleted(**PLACE), chunk(one, "e")])
        assert self.texts_of(begun, one) == {"a\0b\0é🌊de"}

        begun.events.append_all([chunk(one, "f")])
        assert self.texts_of(begun, one) == {"a\0b\0é🌊def"}
        assert self.texts_of(begun, two) == {"xyz"}

    def test_belongs_to_more_messages_than_one_query_loads(self, begun: Database) -> None:
        identifiers = [uuid4() for _ in range(1_203)]
        begun.events.append_all([message(identifier) for identifier in identifiers])
        begun.events.append_all([chunk(identifier, str(number)) for number, identifier in enumerate(identifiers)])

        assert [m.content.text for m in begun.read_model.messages(TURN)] == [  # type: ignore[union-attr]
            str(number) for number in range(1_203)
        ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=message_contents, detail=json_values, name=texts)
def test_a_read_returns_what_was_appended(begun: Database, content: MessageContent, detail: Any, name: str) -> None:
    name = name.replace("\0", "")  # PostgreSQL cannot store it in a text column
    identifier = uuid4()
    begun.events.append_all(
        [
            message(identifier, content),
            ApprovalRequested(approval_id=identifier, action=name, detail=detail, **PLACE),
            BranchPushed(thread_id=THREAD, name=name, remote=name),
        ]
    )

    found, approval = begun.read_model.message(identifier), begun.read_model.approval(identifier)
    assert found is not None
    assert approval is not None
    assert found.content == content
    assert (approval.action, approval.detail) == (name, detail)
    assert name in [branch.name for branch in begun.read_model.branches(THREAD)]


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_the_snapshot_equals_the_lists(database: Database) -> None:
    database.events.append_all(long_session(20))
    state = database.read_model

    snapshot = state.snapshot()

    threads = [thread for project in state.projects() for thread in state.threads(project.id)]
    of_threads: dict[str, Callable[[UUID], list[Any]]] = {
        "turns": state.turns,
        "messages": state.thread_messages,
        "checkpoints": state.checkpoints,
        "pending_approvals": state.pending_approvals,
        "commits": state.commits,
        "branches": state.branches,
    }
    assert snapshot.sequence == database.events.last_sequence()
    assert list(snapshot.projects) == state.projects()
    assert sorted(snapshot.threads, key=str) == sorted(threads, key=str)
    for name, listed in of_threads.items():
        expected = [member for thread in threads for member in listed(thread.id)]
        assert sorted(getattr(snapshot, name), key=str) == sorted(expected, key=str)
    assert state.snapshot(messages=False) == snapshot.model_copy(update={"messages": ()})
    assert Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_a_read_never_sees_half_an_append(migrated_lasting_url: URL) -> None:
    """Each append adds a turn with three streamed messages, and selects its thread."""
    with Database.open(url=migrated_lasting_url) as database:
        read_while_another_appends(database)


def read_while_another_appends(database: Database) -> None:
    database.events.append_all([project(), thread()])
    stopped = threading.Event()

    def append() -> None:
        for _ in range(60):
            turn_id, ids = uuid4(), [uuid4() for _ in range(3)]
            database.events.append_all(
                [
                    TurnStarted(turn_id=turn_id, thread_id=THREAD),
                    *(message(identifier, turn_id=turn_id) for identifier in ids),
                    *(chunk(identifier, "ab", turn_id) for identifier in ids),
                    ThreadSelected(thread_id=THREAD),
                ]
            )
        stopped.set()

    writer = threading.Thread(target=append)
    writer.start()
    reads = 0
    while not stopped.is_set() or reads < 3:
        snapshot = database.read_model.snapshot()
        assert len(snapshot.messages) == 3 * len(snapshot.turns)
        assert snapshot.sequence == 2 + 8 * len(snapshot.turns)
        assert {m.content.text for m in snapshot.messages} <= {"ab"}  # type: ignore[union-attr]
        texts_read = [m.content.text for m in database.read_model.thread_messages(THREAD)]  # type: ignore[union-attr]
        assert len(texts_read) % 3 == 0
        assert set(texts_read) <= {"ab"}
        reads += 1
    writer.join()


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_a_read_does_not_wait_for_a_writer(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([project(), thread()])
        with database.engine.begin() as connection:
            database.events.append_all([thread(UUID(int=9))], connection=connection)

            assert [t.id for t in database.read_model.threads(PROJECT)] == [THREAD]
            assert len(database.read_model.snapshot().threads) == 1
        assert len(database.read_model.threads(PROJECT)) == 2


PAGES: dict[str, Callable[[ReadModel, UUID], object]] = {
    f"{name}{suffix}": lambda state, after, listed=listed, page=page: listed(state)(  # type: ignore[misc]
        limit=5, **({} if page is None else {"after": after, **page})
    )
    for name, (listed, _, key) in LISTS.items()
    if key == "id"
    for suffix, page in {"": None, " after": {}, " before": {"newest_first": True}}.items()
}
ONES: dict[str, Callable[[ReadModel, UUID], object]] = {
    name: lambda state, identifier, name=name: getattr(state, name)(identifier)  # type: ignore[misc]
    for name in ("project", "thread", "turn", "message", "checkpoint", "approval")
}
OTHERS: dict[str, Callable[[ReadModel, UUID], object]] = {
    "selected_thread": lambda state, _: state.selected_thread(),
    "commits": lambda state, _: state.commits(THREAD, after=1, limit=5, newest_first=True),
    "branches": lambda state, _: state.branches(THREAD, after="0", limit=5),
    "thread_summaries": lambda state, _: state.thread_summaries(limit=5),
    "thread_summaries after": lambda state, _: state.thread_summaries(limit=5, after=9),
    "thread_summaries of a project": lambda state, _: state.thread_summaries(PROJECT, limit=5),
    "thread_summaries of a project after": lambda state, _: state.thread_summaries(PROJECT, limit=5, after=9),
    "unfinished_work": lambda state, _: state.unfinished_work(),
}


@pytest.mark.parametrize("read", [pytest.param(read, id=name) for name, read in {**PAGES, **ONES, **OTHERS}.items()])
def test_every_query_uses_an_index(migrated_sqlite_url: URL, read: Callable[[ReadModel, UUID], object]) -> None:
    statements: list[tuple[str, Any]] = []
    others = {made.type: made for _, created, _ in LISTS.values() if (made := created(2_000)).type != "MessageAppended"}
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all(
            [
                *(project(), thread(), TurnStarted(**PLACE)),
                ChangesCommitted(thread_id=THREAD, commit="0", message="m"),
                *others.values(),
                *(message(UUID(int=2_000)), BranchCreated(thread_id=THREAD, name="0")),
            ]
        )
        event.listen(
            database.engine,
            "before_cursor_execute",
            lambda connection, cursor, statement, parameters, *_: statements.append((statement, parameters)),
        )
        with suppress(LookupError):
            read(database.read_model, UUID(int=2_000))
        executed = list(statements)
        with database.engine.connect() as connection:
            plans = [
                row.detail
                for statement, parameters in executed
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]

    assert executed
    assert not [plan for plan in plans if plan.startswith("SCAN") and "USING INDEX" not in plan]
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    rest_is_slow(
        [
            ("projection_messages", "content", "no JSON, and a secret"),
            ("projection_messages", "content", '{"type": "secret"}'),
            ("projection_messages", "created_at", "a secret"),
            ("projection_threads", "provider", "secret"),
            ("projection_approvals", "detail", "{secret"),
            ("projection_messages", "content", "null"),
            ("projection_message_chunks", "delta", "secret"),
            ("projection_message_chunks", "delta", "5"),
        ],
        first=3,
    ),
)
def test_an_error_names_a_damaged_row_without_its_content(begun: Database, table: str, column: str, value: str) -> None:
    identifier, streamed = uuid4(), uuid4()
    begun.events.append_all(
        [
            message(identifier, ToolCallContent(tool_call_id="1", name="read", arguments={})),
            message(streamed),
            chunk(streamed, "text"),
            ApprovalRequested(approval_id=identifier, action="write", detail=None, **PLACE),
        ]
    )
    with begun.engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET {column} = :value"), {"value": value})

    with pytest.raises(PersistenceError, match=f"of {table} is damaged.*rebuild") as caught:
        begun.read_model.snapshot()

    assert "secret" not in str(caught.value)
    assert begun.read_model.project(PROJECT) is not None
    begun.projections.rebuild()
    assert len(begun.read_model.snapshot().messages) == 2


def test_an_error_says_how_to_create_missing_tables(sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url) as database:
        with database.engine.begin() as connection:
            connection.execute(text("DROP TABLE projection_selected_thread"))
        with pytest.raises(StoreUnavailable, match="alembic upgrade head"):
            database.read_model.selected_thread()


def test_results_are_values_of_the_domain(begun: Database) -> None:
    begun.events.append_all([message(uuid4())])

    for value in (begun.read_model.snapshot(), *begun.read_model.messages(TURN)):
        assert isinstance(value, Value)
