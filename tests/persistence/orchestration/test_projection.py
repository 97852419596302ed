"""Text that PostgreSQL cannot store: shown with a symbol, or refused before it is written."""

import pytest
from helpers.orchestration_scene import (
    NEW,
    NEW_APPROVAL,
    NEW_CHECKPOINT,
    ON_TURN,
    PENDING,
    SCENE,
    THREAD,
    TURN,
    UNKNOWN,
    Opener,
    chunk,
    found,
    message,
    random_name,
    refuse,
    renamed,
    rows_of_all_tables,
    thread,
    told,
)
from helpers.slow_proofs import rest_is_slow

from peon.orchestration import (
    ActionRejected,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    OrchestrationEvent,
    ProjectCreated,
    TextContent,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    TurnCompleted,
    TurnFailed,
    TurnStatus,
)
from peon.persistence import Database
from peon.persistence.backends.postgresql import MAXIMUM_KEY_BYTES

pytestmark = pytest.mark.postgresql_too("NUL characters, and the length of an indexed text")


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty()


@pytest.fixture(scope="module")
def scene_in_postgresql(open_empty_postgresql: Opener) -> Database:
    database = open_empty_postgresql("scene of its own")
    database.events.append_all(SCENE)
    return database


WITH_NUL: list[OrchestrationEvent] = [
    ProjectCreated(project_id=NEW, name="a\0b", path="/"),
    ProjectCreated(project_id=NEW, name="a", path="/a\0b"),
    renamed("a\0b"),
    thread(NEW).model_copy(update={"title": "a\0b"}),
    thread(NEW).model_copy(update={"model": "a\0b"}),
    ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.ERROR, error="a\0b"),
    TurnFailed(error="a\0b\0", **ON_TURN),
    ApprovalRequested(**NEW_APPROVAL | {"action": "a\0b"}, **ON_TURN),
    ActionRejected(approval_id=PENDING, reason="a\0b", **ON_TURN),
    ChangesCommitted(thread_id=THREAD, commit="c0ffee", message="a\0b"),
]
"""Free text, which the read model shows with a symbol in the place of the NUL character."""

NAMES_WITH_NUL: list[tuple[str, OrchestrationEvent]] = [
    ("git_ref", CheckpointCreated(**NEW_CHECKPOINT | {"git_ref": "a\0b"}, **ON_TURN)),
    ("commit", ChangesCommitted(thread_id=THREAD, commit="a\0b", message="x")),
    ("name", BranchCreated(thread_id=THREAD, name="a\0b")),
    ("name", BranchPushed(thread_id=THREAD, name="a\0b", remote="origin")),
    ("remote", BranchPushed(thread_id=THREAD, name="tides", remote="a\0b")),
]
"""Names of things in git, which a symbol would change."""


@pytest.mark.parametrize("with_nul", rest_is_slow(WITH_NUL, first=2), ids=lambda event: event.type)
def test_a_nul_character_in_free_text_is_shown_as_a_symbol(database: Database, with_nul: OrchestrationEvent) -> None:
    database.events.append_all(SCENE)
    (stored,) = database.events.append_all([with_nul])

    assert database.events.replay_from(stored.sequence) == [stored]
    assert stored.event == with_nul
    assert found(database) == told(*SCENE, with_nul).state()
    assert "\u2400" in repr(rows_of_all_tables(database))
    assert database.projections.verify() == []
    database.projections.rebuild()
    assert found(database) == told(*SCENE, with_nul).state()


def test_a_failure_whose_report_contains_a_nul_character_ends_its_turn(database: Database) -> None:
    database.events.append_all(SCENE)
    database.events.append_all([TurnFailed(error="exit code 1: \0\0\0", **ON_TURN)])

    turn = database.read_model.turn(TURN)
    assert turn is not None
    assert (turn.status, turn.error) == (TurnStatus.FAILED, "exit code 1: \u2400\u2400\u2400")


@pytest.mark.parametrize(("name", "with_nul"), NAMES_WITH_NUL, ids=lambda value: getattr(value, "type", value))
def test_a_nul_character_in_a_name_of_git_is_refused_by_postgresql(
    scene_in_postgresql: Database, name: str, with_nul: OrchestrationEvent
) -> None:
    error = refuse(scene_in_postgresql, [with_nul])

    assert error.reason == f"PostgreSQL cannot hold the NUL character in its {name}"


def test_the_longest_branch_name_that_postgresql_can_index(scene_in_postgresql: Database) -> None:
    longest = BranchCreated(thread_id=THREAD, name=random_name(MAXIMUM_KEY_BYTES))
    scene_in_postgresql.events.append_all([longest])
    assert longest.name in {branch.name for branch in scene_in_postgresql.read_model.branches(THREAD)}

    error = refuse(scene_in_postgresql, [BranchCreated(thread_id=THREAD, name=random_name(MAXIMUM_KEY_BYTES + 1))])

    assert error.reason == "PostgreSQL cannot index its name of 2,601 bytes: 2,600 at most"


@pytest.mark.parametrize("with_nul", [pair[1] for pair in NAMES_WITH_NUL], ids=lambda event: event.type)
def test_sqlite_returns_a_nul_character_in_a_name_of_git_unchanged(
    open_empty_memory: Opener, with_nul: OrchestrationEvent
) -> None:
    database = open_empty_memory()
    database.events.append_all([*SCENE, with_nul])

    assert found(database) == told(*SCENE, with_nul).state()


def test_a_column_of_json_holds_any_character(database: Database) -> None:
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
