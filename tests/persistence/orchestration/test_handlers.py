"""Each event is applied to the tables, or refused because it contradicts what is stored."""

from uuid import UUID, uuid4

import pytest
from helpers.orchestration_scene import (
    CHECKPOINT,
    MESSAGE,
    NEW,
    NEW_APPROVAL,
    NEW_CHECKPOINT,
    NEW_MESSAGE,
    ON_ENDED_TURN,
    ON_OTHER_TURN,
    ON_TURN,
    OTHER_PROJECT,
    OTHER_THREAD,
    OTHER_TURN,
    PENDING,
    PROJECT,
    SCENE,
    THREAD,
    UNKNOWN,
    Opener,
    chunk,
    each_contradiction,
    found,
    message,
    project,
    refuse,
    renamed,
    rows_of_all_tables,
    thread,
    told,
)
from helpers.random_events import NOWHERE
from sqlalchemy import select

from peon.orchestration import (
    ActionApproved,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    MessageAppended,
    MessageChunkReceived,
    OrchestrationEvent,
    ProjectDeleted,
    TextContent,
    ThinkingContent,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import Database, schema


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty()


@pytest.fixture(scope="module")
def scene(open_empty: Opener) -> Database:
    """Returns a database that tests share; they change nothing but the name of a project."""
    database = open_empty("scene")
    database.events.append_all(SCENE)
    return database


@pytest.fixture(scope="module")
def empty(open_empty_memory: Opener) -> Database:
    """Returns a database that tests share; they leave nothing in it but a project that no other test uses."""
    database = open_empty_memory("empty")
    database.events.append_all([project(uuid4())])
    return database


class TestContradictions:
    @each_contradiction
    def test_an_event_that_contradicts_stored_events_is_refused(
        self, scene: Database, contradictory: OrchestrationEvent, reason: str
    ) -> None:
        error = refuse(scene, [renamed("a"), renamed("b"), contradictory, renamed("c")])

        assert (error.index, error.event_type) == (2, contradictory.type)
        assert reason in error.reason
        assert str(error).startswith(f"event 2 of the batch ({contradictory.type}) cannot be applied: ")

    @each_contradiction
    def test_an_event_that_contradicts_earlier_events_of_its_batch_is_refused(
        self, empty: Database, contradictory: OrchestrationEvent, reason: str
    ) -> None:
        error = refuse(empty, [*SCENE, contradictory, renamed("c")])

        assert (error.index, error.event_type) == (len(SCENE), contradictory.type)
        assert reason in error.reason

    @each_contradiction
    def test_the_reference_model_refuses_it_too(self, contradictory: OrchestrationEvent, reason: str) -> None:
        assert told(*SCENE).contradiction_of(contradictory) is not None

    def test_the_error_names_the_first_contradictory_event(self, scene: Database) -> None:
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
    def test_an_event_after_a_deletion_in_its_batch_is_refused(
        self, scene: Database, deletion: OrchestrationEvent, orphan: OrchestrationEvent
    ) -> None:
        error = refuse(scene, [renamed("a"), deletion, orphan])

        assert error.index == 2
        assert "there is no " in error.reason

    def test_an_event_that_is_sent_twice_is_refused_the_second_time(self, empty: Database) -> None:
        for number, sent in enumerate(SCENE, 1):
            # Other events may be repeated: for example, git deletes branches without an event.
            if not isinstance(sent, ThreadSelected | MessageChunkReceived | ChangesCommitted | BranchCreated):
                assert refuse(empty, [*SCENE[:number], sent]).index == number


@pytest.mark.parametrize("deletion", [ThreadDeleted(thread_id=THREAD), ProjectDeleted(project_id=PROJECT)])
def test_a_deletion_leaves_nothing_behind(database: Database, deletion: OrchestrationEvent) -> None:
    others = [project(OTHER_PROJECT), thread(OTHER_THREAD, OTHER_PROJECT), TurnStarted(**ON_OTHER_TURN)]
    database.events.append_all(SCENE)
    database.events.append_all([deletion])

    counts = {name: len(rows) for name, rows in rows_of_all_tables(database).items()}
    left = {"projection_projects": 1 if deletion.type == "ProjectDeleted" else 2}
    left |= {"projection_threads": 1, "projection_turns": 1, "projection_positions": 1, "events": len(SCENE) + 1}
    left |= {"append_lock": 1, "log_identity": 1, "compaction": 1}
    assert counts == dict.fromkeys(counts, 0) | left
    assert database.read_model.turn(OTHER_TURN) == told(*others).turns[OTHER_TURN].model_copy(
        update={"started_at": SCENE[8].occurred_at}
    )


def test_a_deleted_row_can_be_created_again_in_the_same_batch(database: Database) -> None:
    deletions = [
        ThreadDeleted(thread_id=OTHER_THREAD),
        *(ProjectDeleted(project_id=p) for p in (PROJECT, OTHER_PROJECT)),
    ]
    batch = [*SCENE, *deletions, *SCENE, deletions[0], thread(OTHER_THREAD), deletions[1], project(PROJECT)]

    database.events.append_all(batch)

    assert found(database) == told(*batch).state()
    assert database.projections.verify() == []


def test_a_batch_may_refer_to_more_rows_than_one_query_loads(database: Database) -> None:
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


def test_an_ended_turn_accepts_late_events(database: Database) -> None:
    late: list[OrchestrationEvent] = [
        MessageAppended(**NEW_MESSAGE, **ON_ENDED_TURN),
        ApprovalRequested(**NEW_APPROVAL, **ON_ENDED_TURN),
        ActionApproved(approval_id=NEW, **ON_ENDED_TURN),
        CheckpointCreated(**NEW_CHECKPOINT, **ON_ENDED_TURN),
    ]
    for each in [*SCENE, *late]:
        database.events.append_all([each])

    assert found(database) == told(*SCENE, *late).state()


def test_selecting_a_thread_does_not_update_it(database: Database) -> None:
    database.events.append_all([project(PROJECT), created := thread(THREAD)])
    database.events.append_all([ThreadSelected(thread_id=THREAD)])
    assert database.read_model.selected_thread().updated_at == created.occurred_at  # type: ignore[union-attr]

    (stored,) = database.events.append_all([BranchCreated(thread_id=THREAD, name="tides")])
    assert database.read_model.selected_thread().updated_at == stored.event.occurred_at  # type: ignore[union-attr]


def test_the_last_event_sets_the_time_of_update_even_if_it_is_earlier(database: Database) -> None:
    database.events.append_all([project(PROJECT), thread(THREAD)])
    later, earlier = (ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.RUNNING) for _ in range(2))
    earlier = earlier.model_copy(update={"occurred_at": SCENE[0].occurred_at.replace(year=1999)})

    database.events.append_all([later, earlier])

    assert database.read_model.thread(THREAD).updated_at == earlier.occurred_at  # type: ignore[union-attr]
