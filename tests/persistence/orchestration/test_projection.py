"""The tables follow the log: in each append, at start-up, after anything that came between."""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers import processes, projection_processes
from helpers.agent_session import long_session
from helpers.random_events import NOWHERE, batches
from helpers.reference_model import ReferenceModel, State, state_of
from sqlalchemy import URL, Connection, Integer, Table, delete, event, insert, select, text, update

from peon.config import AppConfig
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
from peon.persistence import Database, Difference, Problem, ProjectionError, ProjectionsOutOfDate, schema
from peon.persistence.backends.engine import READ_ONLY
from peon.persistence.log import pages
from peon.persistence.orchestration.projection import LONGEST_BRANCH_NAME, OrchestrationProjection
from peon.persistence.projections import Projections

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
    message(TOOL_RESULT, ToolResultContent(tool_call_id="1", output={"text": "a"}, is_error=False)),
    chunk(MESSAGE, " and flow"),
    ApprovalRequested(approval_id=PENDING, action="shell", detail={"command": "ls"}, **ON_TURN),
    ApprovalRequested(approval_id=DECIDED, action="shell", detail=None, **ON_TURN),
    ActionRejected(approval_id=DECIDED, reason="No.", **ON_TURN),
    CheckpointCreated(checkpoint_id=CHECKPOINT, git_ref="refs/peon/1", **ON_TURN),
    ChangesCommitted(thread_id=THREAD, commit="c0ffee", message="Tides"),
    BranchCreated(thread_id=THREAD, name="tides"),
]
"""One of each; two projects with a thread each."""

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

each_contradiction = pytest.mark.parametrize(
    ("contradictory", "reason"),
    [
        pytest.param(each, reason, id=f"{each.type}: {reason.replace('00000000-0000-0000-0000-0000000000', '')}")
        for reason, events in CONTRADICTIONS.items()
        for each in events
    ],
)


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
def listening(database: Database, name: str, listener: Callable[..., object]) -> Iterator[None]:
    event.listen(database.engine, name, listener)
    yield
    event.remove(database.engine, name, listener)


@contextmanager
def another(database: Database, **options: Any) -> Iterator[Database]:
    """The same database once more, as another process has it open."""
    with Database.open(url=database.engine.url, **options) as other:
        yield other


def append_alone(database: Database, *events: OrchestrationEvent) -> None:
    """Stores them without projections, as an older version would."""
    alone = Database(database.engine, projections=False)
    alone.events.append_all(events)
    alone.events.close()


def add_row(database: Database, event_type: Any, payload: Any, stored_at: str = "2026-05-17T00:00:00.000000Z") -> int:
    sequence = database.events.last_sequence() + 1
    values = {"sequence": sequence, "event_type": event_type, "payload": payload, "stored_at": stored_at}
    change(database, insert(schema.events).values(values))
    return sequence


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty()


@pytest.fixture(scope="module")
def scene(open_empty: Opener) -> Database:
    """Shared: what is tested with it leaves it as it is, but for the name of a project."""
    database = open_empty("scene")
    database.events.append_all(SCENE)
    return database


@pytest.fixture(scope="module")
def scene_in_postgresql(open_empty_postgresql: Opener) -> Database:
    database = open_empty_postgresql("scene of its own")
    database.events.append_all(SCENE)
    return database


@pytest.fixture(scope="module")
def empty(open_empty_memory: Opener) -> Database:
    """Shared; but for a project that is nowhere else, it is left empty."""
    database = open_empty_memory("empty")
    database.events.append_all([project(uuid4())])
    return database


def refuse(database: Database, batch: list[OrchestrationEvent]) -> ProjectionError:
    """The batch is refused, nothing of it is stored, and the next append works."""
    before = database.read_model.snapshot()
    with pytest.raises(ProjectionError) as caught:
        database.events.append_all(batch)

    assert database.events.last_sequence() == before.sequence
    assert database.read_model.snapshot() == before
    (stored,) = database.events.append_all([renamed("next", before.projects[-1].id)])
    assert stored.sequence == before.sequence + 1
    return caught.value


class TestContradictions:
    @each_contradiction
    def test_of_what_is_stored(self, scene: Database, contradictory: OrchestrationEvent, reason: str) -> None:
        error = refuse(scene, [renamed("a"), renamed("b"), contradictory, renamed("c")])

        assert (error.index, error.event_type) == (2, contradictory.type)
        assert reason in error.reason
        assert str(error).startswith(f"event 2 of the batch ({contradictory.type}) cannot be applied: ")

    @each_contradiction
    def test_of_what_comes_before_it_in_the_batch(
        self, empty: Database, contradictory: OrchestrationEvent, reason: str
    ) -> None:
        error = refuse(empty, [*SCENE, contradictory, renamed("c")])

        assert (error.index, error.event_type) == (len(SCENE), contradictory.type)
        assert reason in error.reason

    @each_contradiction
    def test_the_plain_telling_refuses_it_too(self, contradictory: OrchestrationEvent, reason: str) -> None:
        assert told(*SCENE).contradiction_of(contradictory) is not None

    def test_the_first_of_several_is_named(self, scene: Database) -> None:
        later = [renamed("x", UNKNOWN), thread(THREAD)]

        error = refuse(scene, [renamed("a"), TurnCompleted(**ON_ENDED_TURN), *later, ThreadDeleted(thread_id=UNKNOWN)])

        assert (error.index, error.event_type) == (1, "TurnCompleted")

    @pytest.mark.parametrize("deletion", [ThreadDeleted(thread_id=THREAD), ProjectDeleted(project_id=PROJECT)])
    @pytest.mark.parametrize(
        "orphan",
        [
            ThreadSelected(thread_id=THREAD),
            ThreadDeleted(thread_id=THREAD),
            TurnCompleted(**ON_TURN),
            MessageAppended(**NEW_MESSAGE, **ON_TURN),
            chunk(MESSAGE),
            ActionApproved(approval_id=PENDING, **ON_TURN),
            CheckpointRestored(checkpoint_id=CHECKPOINT, thread_id=THREAD),
            BranchPushed(thread_id=THREAD, name="tides", remote="origin"),
        ],
        ids=lambda orphan: orphan.type,
    )
    def test_of_a_deletion_before_it_in_the_batch(
        self, scene: Database, deletion: OrchestrationEvent, orphan: OrchestrationEvent
    ) -> None:
        error = refuse(scene, [renamed("a"), deletion, orphan])

        assert error.index == 2
        assert "there is no " in error.reason

    def test_what_was_sent_twice_is_refused_the_second_time(self, empty: Database) -> None:
        for number, sent in enumerate(SCENE, 1):
            # The others may come again: git deletes branches without an event, for example.
            if not isinstance(sent, ThreadSelected | MessageChunkReceived | ChangesCommitted | BranchCreated):
                assert refuse(empty, [*SCENE[:number], sent]).index == number


WITH_NUL: list[tuple[str, OrchestrationEvent]] = [
    ("name", ProjectCreated(project_id=NEW, name="a\0b", path="/")),
    ("path", ProjectCreated(project_id=NEW, name="a", path="/a\0b")),
    ("name", renamed("a\0b")),
    ("title", thread(NEW).model_copy(update={"title": "a\0b"})),
    ("model", thread(NEW).model_copy(update={"model": "a\0b"})),
    ("error", ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.ERROR, error="a\0b")),
    ("error", TurnFailed(error="a\0b", **ON_TURN)),
    ("action", ApprovalRequested(**NEW_APPROVAL | {"action": "a\0b"}, **ON_TURN)),
    ("reason", ActionRejected(approval_id=PENDING, reason="a\0b", **ON_TURN)),
    ("git_ref", CheckpointCreated(**NEW_CHECKPOINT | {"git_ref": "a\0b"}, **ON_TURN)),
    ("commit", ChangesCommitted(thread_id=THREAD, commit="a\0b", message="x")),
    ("message", ChangesCommitted(thread_id=THREAD, commit="c0ffee", message="a\0b")),
    ("name", BranchCreated(thread_id=THREAD, name="a\0b")),
    ("name", BranchPushed(thread_id=THREAD, name="a\0b", remote="origin")),
    ("remote", BranchPushed(thread_id=THREAD, name="tides", remote="a\0b")),
]


@pytest.mark.parametrize(("name", "with_nul"), WITH_NUL, ids=lambda value: getattr(value, "type", value))
def test_a_nul_character_is_refused_where_postgresql_cannot_hold_it(
    scene_in_postgresql: Database, name: str, with_nul: OrchestrationEvent
) -> None:
    error = refuse(scene_in_postgresql, [with_nul])

    assert error.reason == f"PostgreSQL cannot hold the NUL character in its {name}"


def random_name(size: int) -> str:
    """A text of so many bytes, two a character but for the first, which PostgreSQL cannot compress."""
    return "x" * (size % 2) + "".join(Random(size).choices("".join(map(chr, range(0x100, 0x800))), k=size // 2))


def test_the_longest_name_of_a_branch_that_an_index_of_postgresql_holds(scene_in_postgresql: Database) -> None:
    longest = BranchCreated(thread_id=THREAD, name=random_name(LONGEST_BRANCH_NAME))
    scene_in_postgresql.events.append_all([longest])
    assert longest.name in {branch.name for branch in scene_in_postgresql.read_model.branches(THREAD)}

    error = refuse(scene_in_postgresql, [BranchCreated(thread_id=THREAD, name=random_name(LONGEST_BRANCH_NAME + 1))])

    assert error.reason == "PostgreSQL cannot index its name of 2,601 bytes: 2,600 at most"


@pytest.mark.parametrize("with_nul", [pair[1] for pair in WITH_NUL], ids=lambda value: value.type)
def test_a_nul_character_comes_back_from_sqlite(open_empty_memory: Opener, with_nul: OrchestrationEvent) -> None:
    database = open_empty_memory()
    database.events.append_all([*SCENE, with_nul])

    assert found(database) == told(*SCENE, with_nul).state()


def test_what_is_kept_as_json_holds_any_character(database: Database) -> None:
    events = [
        *SCENE,
        message(NEW, TextContent(text="a\0b")),
        chunk(NEW, 'c\0\u2028"\\'),
        ApprovalRequested(approval_id=NEW, action="shell", detail={"a\0b": ["\0", 10**300, -0.5]}, **ON_TURN),
        message(UNKNOWN, ToolCallContent(tool_call_id="a\0b", name="a\0b", arguments={"text": "\0"})),
    ]
    database.events.append_all(events)
    assert found(database) == told(*events).state()

    events.append(TurnCompleted(**ON_TURN))
    database.events.append_all(events[-1:])
    assert found(database) == told(*events).state()


@pytest.mark.parametrize("deletion", [ThreadDeleted(thread_id=THREAD), ProjectDeleted(project_id=PROJECT)])
def test_a_deletion_leaves_nothing_behind(database: Database, deletion: OrchestrationEvent) -> None:
    others = [project(OTHER_PROJECT), thread(OTHER_THREAD, OTHER_PROJECT), TurnStarted(**ON_OTHER_TURN)]
    database.events.append_all(SCENE)
    database.events.append_all([deletion])

    counts = {name: len(rows) for name, rows in rows_of_all_tables(database).items()}
    left = {"projection_projects": 1 if deletion.type == "ProjectDeleted" else 2}
    left |= {"projection_threads": 1, "projection_turns": 1, "projection_positions": 1, "events": len(SCENE) + 1}
    left["append_lock"] = 1
    assert counts == dict.fromkeys(counts, 0) | left
    assert database.read_model.turn(OTHER_TURN) == told(*others).turns[OTHER_TURN].model_copy(
        update={"started_at": SCENE[8].occurred_at}
    )


def test_what_was_deleted_can_come_again_in_the_same_batch(database: Database) -> None:
    deletions = [
        ThreadDeleted(thread_id=OTHER_THREAD),
        *(ProjectDeleted(project_id=p) for p in (PROJECT, OTHER_PROJECT)),
    ]
    batch = [*SCENE, *deletions, *SCENE, deletions[0], thread(OTHER_THREAD), deletions[1], project(PROJECT)]

    database.events.append_all(batch)

    assert found(database) == told(*batch).state()
    assert database.projections.verify() == []


def test_a_batch_may_name_more_rows_than_one_query_does(database: Database) -> None:
    many = [UUID(int=number) for number in range(1, 1_300)]
    database.events.append_all([project(identifier) for identifier in many])

    database.events.append_all([renamed("x", identifier) for identifier in many])

    assert {each.name for each in database.read_model.projects()} == {"x"}
    assert refuse(database, [renamed("y", identifier) for identifier in [*many, NOWHERE]]).index == len(many)


def test_late_chunks_stay_rows_and_are_read_as_part_of_the_message(database: Database) -> None:
    def rows() -> list[str]:
        with database.engine.connect() as connection:
            return list(connection.scalars(select(schema.projection_message_chunks.c.delta)))

    late = [chunk(MESSAGE, " (late)"), message(NEW, TextContent(text="late, ")), chunk(NEW, "too")]
    events = [*SCENE, chunk(MESSAGE, ", ebb"), TurnCompleted(**ON_TURN), *late]
    database.events.append_all(events[:-4])
    assert sorted(rows()) == ['" and flow"', '", ebb"']

    database.events.append_all(events[-4:-3])
    assert rows() == []

    database.events.append_all(late)
    assert sorted(rows()) == ['" (late)"', '"too"']
    assert found(database) == told(*events).state()
    assert database.read_model.message(MESSAGE).content == ThinkingContent(text="ebb and flow, ebb (late)")  # type: ignore[union-attr]
    assert database.projections.verify() == []


def test_a_turn_that_ended_takes_what_comes_late(database: Database) -> None:
    late: list[OrchestrationEvent] = [
        MessageAppended(**NEW_MESSAGE, **ON_ENDED_TURN),
        ApprovalRequested(**NEW_APPROVAL, **ON_ENDED_TURN),
        ActionApproved(approval_id=NEW, **ON_ENDED_TURN),
        CheckpointCreated(**NEW_CHECKPOINT, **ON_ENDED_TURN),
    ]
    for each in [*SCENE, *late]:
        database.events.append_all([each])

    assert found(database) == told(*SCENE, *late).state()


def test_to_select_a_thread_is_no_update_of_it(database: Database) -> None:
    database.events.append_all([project(PROJECT), created := thread(THREAD)])
    database.events.append_all([ThreadSelected(thread_id=THREAD)])
    assert database.read_model.selected_thread().updated_at == created.occurred_at  # type: ignore[union-attr]

    (stored,) = database.events.append_all([BranchCreated(thread_id=THREAD, name="tides")])
    assert database.read_model.selected_thread().updated_at == stored.event.occurred_at  # type: ignore[union-attr]


def test_the_last_event_counts_whatever_its_time(database: Database) -> None:
    database.events.append_all([project(PROJECT), thread(THREAD)])
    later, earlier = (ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.RUNNING) for _ in range(2))
    earlier = earlier.model_copy(update={"occurred_at": SCENE[0].occurred_at.replace(year=1999)})

    database.events.append_all([later, earlier])

    assert database.read_model.thread(THREAD).updated_at == earlier.occurred_at  # type: ignore[union-attr]


class TestPosition:
    def test_moves_with_each_append(self, database: Database) -> None:
        assert database.projections.position() == 0
        for batch in ([project(PROJECT)], SCENE[1:5], [renamed("x")]):
            database.events.append_all(batch)
            assert database.projections.position() == database.events.last_sequence()

        assert rows_of_all_tables(database)["projection_positions"] == [("orchestration", 1, 6)]

    def test_is_that_of_the_snapshot(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x"))

        assert database.projections.position() == database.read_model.snapshot().sequence == len(SCENE)


class TestJoiningATransaction:
    def test_commit_is_left_to_the_caller(self, database: Database) -> None:
        with database.engine.begin() as connection:
            database.events.append_all(SCENE[:10], connection=connection)
            database.events.append_all(SCENE[10:], connection=connection)
            assert len(connection.execute(select(schema.projection_threads)).all()) == 2

        assert found(database) == told(*SCENE).state()
        assert database.projections.position() == len(SCENE)

    def test_rollback_undoes_rows_and_position(self, database: Database) -> None:
        database.events.append_all(SCENE[:3])
        before = rows_of_all_tables(database)
        with database.engine.connect() as connection:
            database.events.append_all(SCENE[3:], connection=connection)
            connection.rollback()

        assert rows_of_all_tables(database) == before
        database.events.append_all(SCENE[3:])
        assert found(database) == told(*SCENE).state()

    def test_a_refused_append_leaves_no_trace_in_it(self, database: Database) -> None:
        with database.engine.begin() as connection:
            database.events.append_all(SCENE[:3], connection=connection)
            with pytest.raises(ProjectionError):
                database.events.append_all([*SCENE[3:], thread(THREAD)], connection=connection)
            database.events.append_all([renamed("x")], connection=connection)

        assert found(database) == told(*SCENE[:3], renamed("x")).state() | {
            "projects": found(database)["projects"],
            "snapshot": database.read_model.snapshot(),
        }
        assert database.read_model.snapshot().sequence == database.projections.position() == 4
        assert database.projections.verify() == []

    def test_a_gap_is_closed_in_it(self, database: Database) -> None:
        append_alone(database, *SCENE[:6])
        with database.engine.connect() as connection:
            database.events.append_all(SCENE[6:], connection=connection)
            connection.rollback()
        assert database.projections.position() == 0

        with database.engine.begin() as connection:
            database.events.append_all(SCENE[6:], connection=connection)

        assert found(database) == told(*SCENE).state()


@pytest.mark.usefixtures("small_pages")
class TestGaps:
    def test_the_next_append_closes_them(self, database: Database) -> None:
        database.events.append_all(SCENE[:2])
        append_alone(database, *SCENE[2:16])
        assert database.projections.position() == 2

        database.events.append_all(SCENE[16:])

        assert found(database) == told(*SCENE).state()
        assert database.projections.position() == len(SCENE)
        assert database.projections.verify() == []

    def test_what_contradicts_in_them_becomes_a_problem_and_stops_nobody(self, database: Database) -> None:
        database.events.append_all(SCENE[:3])
        append_alone(database, thread(THREAD), renamed("x", UNKNOWN), renamed("stored"))
        undecodable = add_row(database, "Unheard", "{}")

        database.events.append_all([renamed("appended")])

        problems = database.projections.problems()
        assert [(problem.sequence, problem.event_type) for problem in problems] == [
            (4, "ThreadCreated"),
            (5, "ProjectRenamed"),
            (undecodable, "Unheard"),
        ]
        assert database.read_model.project(PROJECT).name == "appended"  # type: ignore[union-attr]

    def test_a_refused_append_leaves_them_open(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        before = rows_of_all_tables(database)

        with pytest.raises(ProjectionError) as caught:
            database.events.append_all([renamed("a"), thread(THREAD)])
        assert (caught.value.index, caught.value.event_type) == (1, "ThreadCreated")
        assert rows_of_all_tables(database) == before

        database.events.append_all([renamed("a")])
        assert [problem.sequence for problem in database.projections.problems()] == [len(SCENE) + 1]

    def test_two_that_have_it_open_take_turns(self, open_lasting: Opener) -> None:
        with another(database := open_lasting()) as other, another(database, projections=False) as alone:
            for number, each in enumerate(SCENE):
                (database, other, alone)[number % 3].events.append_all([each])
            other.events.append_all([renamed("x")])

            assert database.projections.verify() == []
            assert database.projections.position() == len(SCENE) + 1


class Newer(OrchestrationProjection):
    version = 2


class TestAnotherVersion:
    def test_its_tables_are_not_written(self, database: Database) -> None:
        database.events.append_all(SCENE)
        Projections(database.engine, [Newer()]).catch_up()
        before = rows_of_all_tables(database)

        for _ in range(2):
            with pytest.raises(ProjectionsOutOfDate, match="projection orchestration"):
                database.events.append_all([renamed("x")])
        assert rows_of_all_tables(database) == before

        database.projections.rebuild()
        database.events.append_all([renamed("x")])
        assert database.projections.verify() == []

    def test_nor_are_tables_that_were_never_begun(self, open_empty: Opener) -> None:
        database = open_empty()
        change(database, delete(schema.projection_positions))

        with pytest.raises(ProjectionsOutOfDate):
            database.events.append_all(SCENE)
        assert database.events.last_sequence() == 0

        database.projections.catch_up()
        database.events.append_all(SCENE)
        assert found(database) == told(*SCENE).state()

    def test_they_are_built_anew_at_the_next_opening(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        change(
            database,
            update(schema.projection_positions).values(version=0),
            update(schema.projection_projects).values(name="as an older version had it"),
            delete(schema.projection_turns),
        )
        reported: list[tuple[int, int]] = []

        with another(database, progress=lambda *pair: reported.append(pair)):
            assert database.projections.position() == len(SCENE) + 1

        assert database.read_model.snapshot() == told(*SCENE).snapshot().model_copy(update={"sequence": len(SCENE) + 1})
        assert [problem.sequence for problem in database.projections.problems()] == [len(SCENE) + 1]
        assert reported[-1] == (len(SCENE) + 1, len(SCENE) + 1)

    def test_an_older_one_that_catches_up_meanwhile_does_not_spoil_them(
        self, database: Database, small_pages: None
    ) -> None:
        append_alone(database, *SCENE)
        both = {1: database.projections, 2: Projections(database.engine, [Newer()])}
        reported: list[int] = []

        def overtake(done: int, _: int) -> None:
            reported.append(done)
            if len(reported) == 1:
                both[2].catch_up()
                append_alone(database, project(NEW))

        with suppress(ProjectionsOutOfDate):
            database.projections.catch_up(overtake)

        ((_, version, _),) = rows_of_all_tables(database)["projection_positions"]
        both[version].catch_up()
        assert both[version].verify() == []


@pytest.mark.usefixtures("small_pages")
class TestCatchUp:
    def test_reports_each_commit(self, open_empty: Opener) -> None:
        alone = open_empty(projections=False)
        alone.events.append_all(SCENE)
        database = Database(alone.engine)
        reported: list[tuple[int, int, int]] = []

        def report(done: int, total: int) -> None:
            reported.append((done, total, database.projections.position()))

        database.projections.catch_up(report)
        assert reported == [(8, 19, 8), (16, 19, 16), (19, 19, 19)]

        database.projections.catch_up(report)
        assert len(reported) == 3

    def test_goes_on_where_it_was_interrupted(self, database: Database) -> None:
        events = long_session(6)
        append_alone(database, *events)
        model = ReferenceModel()
        done = 0
        for _ in range(4):
            calls = iter(range(2))

            def interrupt(*_: int, calls: Iterator[int] = calls) -> None:
                if next(calls, None) is None:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                database.projections.catch_up(interrupt)
            assert database.projections.position() == done + 3 * 8
            model.follow_all(events[done : done + 3 * 8])
            done += 3 * 8
            assert state_of(database.read_model, model.approvals) == model.state()

        totals: list[tuple[int, int]] = []
        database.projections.catch_up(lambda *pair: totals.append(pair))

        assert totals[-1] == (len(events) - done, len(events) - done)
        model.follow_all(events[done:])
        assert state_of(database.read_model, model.approvals) == model.state()

    def test_reports_what_others_append_meanwhile(self, database: Database) -> None:
        append_alone(database, *SCENE)
        reported: list[tuple[int, int]] = []

        def append(done: int, total: int) -> None:
            reported.append((done, total))
            if len(reported) < 4:
                append_alone(database, *(renamed("x") for _ in range(5)))

        database.projections.catch_up(append)

        assert reported[-1] == (len(SCENE) + 15, len(SCENE) + 15)
        assert [done for done, _ in reported] == sorted(done for done, _ in reported)
        assert database.projections.position() == len(SCENE) + 15

    def test_reports_the_end_where_another_process_did_the_rest(self, database: Database) -> None:
        append_alone(database, *SCENE)
        reported: list[tuple[int, int]] = []

        def overtake(*pair: int) -> None:
            reported.append(pair)  # type: ignore[arg-type]
            Projections(database.engine, [OrchestrationProjection()]).catch_up()

        database.projections.catch_up(overtake)

        assert database.projections.verify() == []
        assert reported[-1][0] == reported[-1][1]

    def test_happens_when_it_is_opened_and_only_there_where_projections_are_off(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=False)
        database.events.append_all(SCENE)
        with another(database, projections=False) as alone:
            assert alone.projections.position() == 0
            assert alone.read_model.projects() == []

        reported: list[tuple[int, int]] = []
        with another(database, progress=lambda *pair: reported.append(pair)) as opened:
            assert found(opened) == told(*SCENE).state()
        assert reported == [(8, 19), (16, 19), (19, 19)]

    def test_takes_no_lock_where_nothing_is_to_be_done(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        with database.engine.connect() as connection:
            database.events.append_all([renamed("x")], connection=connection)
            with another(database) as opened:  # would wait, and fail, otherwise
                assert found(opened) == told(*SCENE).state()
            connection.rollback()

    def test_of_two_processes_at_once(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=False)
        events = long_session(12)
        database.events.append_all(events)
        processes_at_once = 3
        together = processes.context.Barrier(processes_at_once)
        url = database.engine.url.render_as_string(hide_password=False)

        codes = processes.exit_codes(projection_processes.open_together, [(together, url)] * processes_at_once)

        assert codes == [0] * processes_at_once
        model = ReferenceModel()
        model.follow_all(events)
        assert state_of(database.read_model, model.approvals) == model.state()
        assert database.projections.verify() == []


UNDECODABLE = [
    ("Unheard", "{}", "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", "{", "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", '{"type":"ProjectRenamed"}', "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", renamed("in vain").model_dump_json(), "yesterday"),
]


class TestProblems:
    @each_contradiction
    def test_a_stored_contradiction_is_passed_over(
        self, open_empty_memory: Opener, contradictory: OrchestrationEvent, reason: str
    ) -> None:
        database = open_empty_memory()
        append_alone(database, *SCENE, contradictory, renamed("x"))

        database.projections.catch_up()

        (problem,) = database.projections.problems()
        assert problem[:3] == ("orchestration", len(SCENE) + 1, contradictory.type)
        assert reason in problem.reason
        model = ReferenceModel()
        assert list(model.follow_all([*SCENE, contradictory, renamed("x")])) == [len(SCENE) + 1]
        assert found(database) == model.state()

    def test_what_cannot_be_decoded_is_passed_over(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=False)
        database.events.append_all(SCENE)
        numbers = [add_row(database, *row) for row in UNDECODABLE]
        if not is_postgresql(database):
            numbers.append(add_row(database, b"\xff", b"\xfe"))
        append_alone(database, renamed("x"))

        with another(database) as opened:
            problems = opened.projections.problems()
            assert [(problem.projection, problem.sequence) for problem in problems] == [
                ("orchestration", number) for number in numbers
            ]
            assert [problem.event_type for problem in problems[:4]] == [row[0] for row in UNDECODABLE]
            assert all(problem.reason for problem in problems)
            assert opened.read_model.project(PROJECT).name == "x"  # type: ignore[union-attr]
            opened.events.append_all([renamed("y")])
            assert opened.projections.position() == opened.events.last_sequence()
            assert [difference.key for difference in opened.projections.verify()] == [
                f"orchestration/{number}" for number in numbers
            ]
            opened.projections.rebuild()
            assert opened.projections.problems() == problems

    def test_verify_reports_them(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        reason = f"there is no project {UNKNOWN}"

        number = len(SCENE) + 1
        assert database.projections.problems() == [Problem("orchestration", number, "ProjectRenamed", reason)]
        assert database.projections.verify() == [
            Difference("projection_problems", f"orchestration/{number}", "reason", None, reason)
        ]

    def test_a_nul_character_in_a_stored_name_is_one_on_postgresql(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("a\0b"))

        database.projections.catch_up()

        name = database.read_model.project(PROJECT).name  # type: ignore[union-attr]
        assert (name, len(database.projections.problems())) == (
            ("tide-table", 1) if is_postgresql(database) else ("a\0b", 0)
        )

    def test_a_name_of_a_branch_that_no_index_holds_is_one_on_postgresql(self, database: Database) -> None:
        too_long = random_name(LONGEST_BRANCH_NAME + 1)
        made = BranchCreated(thread_id=THREAD, name=too_long)
        append_alone(
            database, *SCENE, made, BranchPushed(thread_id=THREAD, name=too_long, remote="origin"), renamed("b")
        )

        for build in (database.projections.catch_up, database.projections.rebuild):
            build()
            problems = [problem.sequence - len(SCENE) for problem in database.projections.problems()]
            assert problems == ([1, 2] if is_postgresql(database) else [])
            assert database.read_model.project(PROJECT).name == "b"  # type: ignore[union-attr]
        assert database.events.append_all([renamed("c")])[0].sequence == len(SCENE) + 4

    def test_they_do_not_stop_a_start_up_where_the_position_was_lost(self, open_lasting: Opener) -> None:
        database = open_lasting()
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        change(database, delete(schema.projection_positions))

        with another(database) as opened:
            assert [problem.sequence for problem in opened.projections.problems()] == [len(SCENE) + 1]
            assert opened.read_model.snapshot().threads == told(*SCENE).snapshot().threads


def tamper(database: Database) -> None:
    change(
        database,
        update(schema.projection_projects).values(name="tampered"),
        delete(schema.projection_approvals),
        insert(schema.projection_turns).values(
            id=str(NEW), thread_id=str(THREAD), status="running", started_at="2026-05-17T00:00:00.000000Z", sequence=99
        ),
    )


@contextmanager
def raising_as_rows_are_put_into(table: str, database: Database, error: type[BaseException]) -> Iterator[None]:
    def interrupt(_: object, __: object, statement: str, *___: object) -> None:
        if re.match(rf"INSERT INTO \S*{table} .* SELECT", statement):
            raise error

    event.listen(database.engine, "before_cursor_execute", interrupt)
    yield
    event.remove(database.engine, "before_cursor_execute", interrupt)


@pytest.mark.usefixtures("small_pages")
class TestRebuild:
    def test_mends_whatever_was_done_to_the_tables(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        database.projections.catch_up()
        sound = rows_of_all_tables(database)
        tamper(database)
        change(database, delete(schema.projection_positions), delete(schema.projection_problems))

        database.projections.rebuild()

        assert rows_of_all_tables(database) == sound

    def test_reports_the_pages(self, database: Database) -> None:
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        database.projections.rebuild(lambda *pair: reported.append(pair))

        assert reported == [(4, 19), (8, 19), (12, 19), (16, 19), (19, 19)]

    def test_of_an_empty_log(self, database: Database) -> None:
        database.projections.rebuild()
        database.events.append_all(SCENE)

        assert database.projections.verify() == []

    @pytest.mark.parametrize("call", [0, 3])
    def test_interrupted_it_has_changed_nothing(self, database: Database, call: int) -> None:
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)
        calls = iter(range(call))

        def interrupt(*_: int) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.projections.rebuild(interrupt)

        assert rows_of_all_tables(database) == before
        database.events.append_all([renamed("x")])
        database.projections.rebuild()
        assert database.projections.verify() == []

    @pytest.mark.parametrize("table", ["projection_projects", "projection_branches", "projection_problems"])
    def test_failed_while_the_rows_are_put_in_place_it_has_changed_nothing(
        self, database: Database, table: str
    ) -> None:
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)

        with raising_as_rows_are_put_into(table, database, LookupError), pytest.raises(LookupError):
            database.projections.rebuild()

        assert rows_of_all_tables(database) == before
        database.events.append_all([renamed("x")])
        database.projections.rebuild()
        assert database.projections.verify() == []

    def test_control_c_is_not_taken_for_an_error_of_the_database(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        tamper(database)
        before = rows_of_all_tables(database)

        # SQLAlchemy closes a connection whose statement was interrupted so.
        with raising_as_rows_are_put_into("checkpoints", database, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            database.projections.rebuild()

        assert rows_of_all_tables(database) == before
        database.projections.rebuild()
        assert database.projections.verify() == []

    def test_readers_see_the_old_rows_until_its_last_commit(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        sound = found(database)
        tamper(database)
        tampered = found(database)
        seen: list[State] = []

        with another(database) as reader:
            event.listen(database.engine, "commit", lambda _: seen.append(found(reader)))
            database.projections.rebuild(lambda *_: seen.append(found(reader)))
            after = found(reader)

        assert len(seen) > 5
        assert [state for state in seen if state != tampered] in ([], [sound])  # dropping the shadows commits, too
        assert after == sound

    def test_on_a_server_it_is_one_transaction(self, open_empty_postgresql: Opener) -> None:
        """Behind a pooler the next one may be on another session, which has not the temporary tables."""
        database = open_empty_postgresql()
        database.events.append_all(SCENE)
        database.events.close()
        commits: list[Connection] = []
        temporary_tables = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"

        with listening(database, "commit", commits.append):
            database.projections.rebuild()

        assert len(commits) == 1
        with database.engine.connect() as connection:  # the only one in the pool
            assert connection.scalar(text("SELECT pg_my_temp_schema()")) != 0
            assert connection.scalar(text(temporary_tables)) == 0

    @pytest.mark.parametrize("call", [0, 3])
    def test_a_connection_that_keeps_its_temporary_tables_is_not_used_again(
        self, open_lasting: Opener, call: int
    ) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        before = found(database)
        database.events.close()  # so that there is one connection in the pool
        calls = iter(range(call))

        def interrupt(*_: int) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        def fail_to_drop(_: object, __: object, statement: str, *___: object) -> None:
            if statement.lstrip().startswith("DROP TABLE"):
                raise LookupError

        # A server drops them by itself, with their transaction.
        error = KeyboardInterrupt if is_postgresql(database) else LookupError
        with listening(database, "before_cursor_execute", fail_to_drop), pytest.raises(error):
            database.projections.rebuild(interrupt)

        assert found(database) == before
        assert database.projections.verify() == []

    def test_once_committed_it_waits_for_no_writer(self, migrated_sqlite_url: URL) -> None:
        with (
            Database.open(AppConfig(database={"busy_timeout": 0.05}), url=migrated_sqlite_url) as database,
            closing(sqlite3.connect(str(migrated_sqlite_url.database), isolation_level=None)) as writer,
        ):
            database.events.append_all(SCENE)
            replaced = threading.Event()

            def note(connection: Connection) -> None:
                if not connection.get_execution_options()[READ_ONLY]:
                    replaced.set()

            def write(_: Connection) -> None:
                if replaced.is_set() and not writer.in_transaction:
                    writer.execute("BEGIN IMMEDIATE")

            event.listen(database.engine, "begin", write, insert=True)
            with listening(database, "commit", note):
                database.projections.rebuild()

            assert writer.in_transaction
            assert database.projections.verify() == []

    def test_a_reader_sees_one_state_or_the_other(self, open_lasting: Opener) -> None:
        database = open_lasting()
        events = long_session(10)
        database.events.append_all(events)
        change(database, update(schema.projection_projects).values(name="tampered"), delete(schema.projection_commits))
        tampered = database.read_model.snapshot()
        seen = [tampered]
        stop, reading = threading.Event(), threading.Event()

        def read() -> None:
            with another(database) as reader:
                while not stop.is_set():
                    snapshot = reader.read_model.snapshot()
                    if snapshot != seen[-1]:
                        seen.append(snapshot)
                    reading.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(processes.PATIENCE)
        database.projections.rebuild()
        stop.set()
        thread.join()

        model = ReferenceModel()
        model.follow_all(events)
        assert seen in ([tampered], [tampered, model.snapshot()])
        assert database.read_model.snapshot() == model.snapshot()

    def test_what_others_append_meanwhile_is_in_it(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        with another(database) as other, another(database, projections=False) as alone:

            def append(done: int, total: int) -> None:
                reported.append((done, total))
                if len(reported) <= 3:
                    other.events.append_all([renamed(f"other {done}")])
                    alone.events.append_all([renamed(f"alone {done}")])

            database.projections.rebuild(append)

        assert database.read_model.project(PROJECT).name == "alone 12"  # type: ignore[union-attr]
        assert database.projections.position() == len(SCENE) + 6
        assert database.projections.verify() == []
        assert reported[-1] == (len(SCENE) + 6, len(SCENE) + 6)

    def test_what_others_append_once_it_has_read_to_the_end_is_in_it(
        self, open_lasting: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        waiting = [renamed("just in time")]
        ends: list[int] = []
        read_page = pages.LogPages.read_page

        with another(database) as other:

            def read_and_append(self: pages.LogPages, connection: Connection, after: int) -> list[pages.LogRow]:
                page = read_page(self, connection, after)
                # The second look at the same end is the last one that does not keep others waiting.
                if not page and after in ends and waiting:
                    other.events.append_all([waiting.pop()])
                if not page:
                    ends.append(after)
                return page

            monkeypatch.setattr(pages.LogPages, "read_page", read_and_append)
            database.projections.rebuild()

        assert waiting == []
        assert database.read_model.project(PROJECT).name == "just in time"  # type: ignore[union-attr]
        assert database.projections.position() == len(SCENE) + 1
        assert database.projections.verify() == []

    def test_nothing_is_lost_of_what_a_thread_appends_all_the_while(self, open_lasting: Opener) -> None:
        database = open_lasting()
        remaining = batches(Random(7), long_session(10), (1, 2, 5))
        stop, appending = threading.Event(), threading.Event()

        def append() -> None:
            with another(database) as other:
                for number, batch in enumerate(remaining):
                    if stop.is_set():
                        return
                    other.events.append_all(batch)
                    if number == 5:
                        appending.set()

        thread = threading.Thread(target=append)
        thread.start()
        assert appending.wait(processes.PATIENCE)
        for _ in range(2):
            database.projections.rebuild()
        stop.set()
        thread.join()

        model = ReferenceModel()
        model.follow_all(stored.event for stored in database.events.stream())
        assert state_of(database.read_model, model.approvals) == model.state()
        assert database.projections.verify() == []


ROWS: tuple[tuple[Table, dict[str, Any], str, Any], ...] = (
    (schema.projection_message_chunks, {"message_id": str(MESSAGE)}, "delta", '""'),
    (schema.projection_messages, {"id": str(TOOL_CALL)}, "content", "{}"),
    (schema.projection_approvals, {"id": str(DECIDED)}, "reason", None),
    (schema.checkpoints, {"id": str(CHECKPOINT)}, "restored_at", "2026-05-17T00:00:00.000000Z"),
    (schema.projection_commits, {"thread_id": str(THREAD)}, "hash", "c0ffe"),
    (schema.projection_branches, {"name": "tides"}, "sequence", 1),
    (schema.projection_selected_thread, {"thread_id": str(THREAD)}, "thread_id", str(OTHER_THREAD)),
    (schema.projection_turns, {"id": str(OTHER_TURN)}, "status", "completed"),
    (schema.projection_threads, {"id": str(OTHER_THREAD)}, "status", "running"),
    (schema.projection_projects, {"id": str(OTHER_PROJECT)}, "name", "tampered"),
)
"""Of each table a row on which no other row hangs that comes after it here, and a column of it that is changed."""


def row_of(database: Database, table: Table, key: dict[str, Any]) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return dict(connection.execute(select(table).filter_by(**key)).mappings().one())


def key_of(table: Table, row: dict[str, Any]) -> str:
    return "/".join(str(row[part.name]) for part in table.primary_key)


def differing(database: Database) -> list[Difference]:
    """Returns the differences, by table; to find them has changed nothing, and a rebuild mends them."""
    before = rows_of_all_tables(database)
    differences = database.projections.verify()
    assert rows_of_all_tables(database) == before
    database.projections.rebuild()
    assert database.projections.verify() == []
    return sorted(differences, key=lambda difference: difference[:3])


class TestVerify:
    def test_is_tested_with_every_table_of_the_projection(self) -> None:
        assert {table for table, *_ in ROWS} == set(OrchestrationProjection.tables)

    def test_finds_a_changed_column_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, column, value in ROWS:
            row = row_of(database, table, key)
            change(database, update(table).filter_by(**key).values({column: value}))
            expected.append(Difference(table.name, key_of(table, row), column, row[column], value))

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    def test_finds_a_missing_row_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, *_ in ROWS:
            row = row_of(database, table, key)
            change(database, delete(table).filter_by(**key))
            expected += [
                Difference(table.name, key_of(table, row), column, value, None)
                for column, value in row.items()
                if value is not None
            ]

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    def test_finds_a_row_too_many_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, *_ in ROWS:
            row = row_of(database, table, key)
            last = list(table.primary_key)[-1]
            row[last.name] = 99 if isinstance(last.type, Integer) else "added"
            change(database, insert(table).values(row))
            expected += [
                Difference(table.name, key_of(table, row), column, None, value)
                for column, value in row.items()
                if value is not None
            ]

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    @pytest.mark.parametrize(("column", "value"), [("version", 7), ("sequence", 3)])
    def test_finds_a_wrong_position(self, database: Database, column: str, value: int) -> None:
        database.events.append_all(SCENE)
        change(database, update(schema.projection_positions).values({column: value}))

        expected = {"version": 1, "sequence": len(SCENE)}[column]
        assert differing(database) == [Difference("projection_positions", "orchestration", column, expected, value)]

    def test_finds_a_missing_position(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(database, delete(schema.projection_positions))

        assert {difference[:4] for difference in differing(database)} >= {
            ("projection_positions", "orchestration", "sequence", len(SCENE))
        }

    def test_finds_what_was_appended_without_projections(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x"))

        assert differing(database) == [
            Difference("projection_positions", "orchestration", "sequence", len(SCENE) + 1, len(SCENE)),
            Difference("projection_projects", str(PROJECT), "name", "x", "tide-table"),
        ]

    def test_finds_a_problem_that_is_none(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(
            database,
            insert(schema.projection_problems).values(
                projection="orchestration", sequence=2, event_type="ProjectCreated", reason="none at all"
            ),
        )

        assert differing(database) == [
            Difference("projection_problems", "orchestration/2", "reason", None, "none at all")
        ]

    def test_finds_a_problem_that_was_not_recorded(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        change(database, delete(schema.projection_problems))

        reason = f"there is no project {UNKNOWN}"
        assert database.projections.verify() == [
            Difference("projection_problems", f"orchestration/{len(SCENE) + 1}", "reason", reason, None)
        ]

    def test_reports_the_pages(self, database: Database, small_pages: None) -> None:
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        assert database.projections.verify(lambda *pair: reported.append(pair)) == []

        assert reported == [(4, 19), (8, 19), (12, 19), (16, 19), (19, 19)]

    def test_compares_one_state_while_others_append(self, open_lasting: Opener, small_pages: None) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        with another(database) as other:
            assert database.projections.verify(lambda *_: other.events.append_all([renamed(str(uuid4()))])) == []

        assert database.projections.position() > len(SCENE)
        assert database.projections.verify() == []

    def test_interrupted_it_leaves_nothing_behind(self, database: Database) -> None:
        database.events.append_all(SCENE)

        def interrupt(*_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.projections.verify(interrupt)

        assert found(database) == told(*SCENE).state()
        database.events.append_all([renamed("x")])
        assert database.projections.verify() == []

    def test_shadows_are_seen_by_nobody(self, open_lasting: Opener, small_pages: None) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        expected = found(database)
        seen: list[State] = []

        with another(database) as other:
            database.projections.verify(lambda *_: seen.extend([found(database), found(other)]))

        assert seen == [expected] * 10
