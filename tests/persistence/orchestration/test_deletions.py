"""A large deletion hides its rows from readers at once; the next appends of any process clear them in bounded steps."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import pytest
from helpers.orchestration_scene import (
    MESSAGE,
    NEW,
    ON_TURN,
    OTHER_PROJECT,
    OTHER_THREAD,
    PENDING,
    PROJECT,
    SCENE,
    THREAD,
    TURN,
    another,
    change,
    chunk,
    found,
    message,
    project,
    renamed,
    rows_of_all_tables,
    thread,
    told,
)
from helpers.random_events import identifiers
from sqlalchemy import delete, func, select

from peon import AsyncDatabase
from peon.orchestration import (
    BranchPushed,
    OrchestrationEvent,
    ProjectDeleted,
    TextContent,
    ThreadDeleted,
    TurnStarted,
)
from peon.persistence import Database, schema
from peon.persistence.orchestration import deletions

Opener = Callable[..., Database]

DELETIONS: list[OrchestrationEvent] = [ThreadDeleted(thread_id=THREAD), ProjectDeleted(project_id=PROJECT)]
each_deletion = pytest.mark.parametrize("deletion", DELETIONS, ids=["thread", "project"])

OF_DOMAIN = [table.name for table in schema.metadata.sorted_tables if table.name.startswith("projection_")]


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each deletion hide its rows, of which each later append clears two."""
    monkeypatch.setattr(deletions, "SMALL_ROWS", -1)
    monkeypatch.setattr(deletions, "STEP_ROWS", 2)


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty()


def rows(database: Database) -> int:
    """Returns the number of rows in the tables of the read model."""
    counted = rows_of_all_tables(database)
    return sum(len(counted[name]) for name in [*OF_DOMAIN, "checkpoints"])


def left_to_clear(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(schema.projection_deletions)).scalar_one()


@each_deletion
@pytest.mark.usefixtures("all_are_large")
def test_readers_see_nothing_of_it_at_once_and_later_appends_clear_it(
    database: Database, deletion: OrchestrationEvent
) -> None:
    database.events.append_all(SCENE)
    before = rows(database)

    database.events.append_all([deletion])

    model = told(*SCENE, deletion)
    assert rows(database) >= before
    assert found(database) == model.state()
    steps = 0
    while left_to_clear(database):
        name = f"step {steps}"
        before = rows(database)
        database.events.append_all([renamed(name, OTHER_PROJECT)])
        model.follow(renamed(name, OTHER_PROJECT))
        assert before - rows(database) <= deletions.STEP_ROWS + 2
        assert found(database) == model.state()
        assert database.read_model.thread(THREAD) is None
        assert database.read_model.turn(TURN) is None
        assert database.read_model.message(MESSAGE) is None
        assert database.read_model.approval(PENDING) is None
        assert database.read_model.messages(TURN) == database.read_model.thread_messages(THREAD) == []
        assert database.read_model.branches(THREAD) == database.read_model.commits(THREAD) == []
        assert [turn.thread_id for turn in database.read_model.running_turns()] == [OTHER_THREAD]
        assert database.projections.verify() == []
        steps += 1
    assert steps > 5
    cleared = rows_of_all_tables(database)
    assert database.read_model.snapshot().threads == (database.read_model.thread(OTHER_THREAD),)
    database.projections.rebuild()
    assert rows_of_all_tables(database) == cleared


@each_deletion
@pytest.mark.usefixtures("all_are_large")
def test_identifiers_can_be_used_again_before_it_is_cleared(database: Database, deletion: OrchestrationEvent) -> None:
    scene = [
        event
        for event in SCENE
        if not {OTHER_PROJECT, OTHER_THREAD} & {value for value in dict(event).values() if isinstance(value, UUID)}
    ]
    again = scene if deletion is DELETIONS[1] else scene[1:]
    database.events.append_all(scene)
    for _ in range(3):
        database.events.append_all([deletion])
        database.events.append_all(again[:9])
        assert database.projections.verify() == []
        database.events.append_all(again[9:])
        assert database.projections.verify() == []

    assert left_to_clear(database)
    model = told(*scene, *[deletion, *again] * 3)
    assert found(database) == model.state()
    assert database.maintenance.clear_deleted()
    assert found(database) == model.state()
    assert database.projections.verify() == []


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.slow
def test_a_turn_of_a_deleted_thread_is_used_in_another_that_is_deleted_too(database: Database) -> None:
    moved = {"turn_id": TURN, "thread_id": OTHER_THREAD}
    events = [
        *SCENE,
        ThreadDeleted(thread_id=THREAD),
        TurnStarted(**moved),
        message(NEW, TextContent(text="x")).model_copy(update=moved),
        chunk(NEW, "new", **moved),
        ThreadDeleted(thread_id=OTHER_THREAD),
        thread(THREAD),
        TurnStarted(**ON_TURN),
        message(MESSAGE, TextContent(text="again")),
        chunk(MESSAGE, " and again"),
        BranchPushed(thread_id=THREAD, name="tides", remote="origin"),
    ]
    for number, event in enumerate(events, 1):
        database.events.append_all([event])
        assert found(database) == told(*events[:number]).state()
        assert database.projections.verify() == []

    database.maintenance.clear_deleted()

    assert left_to_clear(database) == 0
    assert found(database) == told(*events).state()
    assert database.projections.verify() == []


@pytest.mark.usefixtures("all_are_large")
def test_another_process_clears_what_a_killed_one_has_left(open_lasting: Opener) -> None:
    database = open_lasting()
    database.events.append_all([*SCENE, *DELETIONS[1:]])
    assert left_to_clear(database)

    with another(database) as other:
        while left_to_clear(database):
            other.events.append_all([renamed("x", OTHER_PROJECT)])

    assert [len(rows_of_all_tables(database)[name]) for name in ("projection_messages", "checkpoints")] == [0, 0]


@pytest.mark.usefixtures("all_are_large")
def test_both_faces_clear_it_at_once(open_lasting: Opener) -> None:
    async def clear() -> list[int]:
        async with await AsyncDatabase.open(url=url) as opened:
            return [await opened.maintenance.clear_deleted(), await opened.maintenance.clear_deleted()]

    removed = []
    for _ in range(2):
        database = open_lasting()
        url = database.engine.url
        database.events.append_all([*SCENE, *DELETIONS[1:]])
        if removed:
            removed.append(asyncio.run(clear()))
        else:
            removed.append([database.maintenance.clear_deleted(), database.maintenance.clear_deleted()])
        assert left_to_clear(database) == 0
    assert removed[0] == removed[1]
    assert removed[0][0] > len(SCENE) - 8
    assert removed[0][1] == 0


def test_only_a_large_deletion_hides_its_rows(database: Database) -> None:
    many = [message(new, TextContent(text="x")) for new in identifiers(9, 600)]
    database.events.append_all(SCENE)
    database.events.append_all([DELETIONS[0]])
    assert left_to_clear(database) == 0
    assert len(rows_of_all_tables(database)["projection_messages"]) == 0

    database.events.append_all([thread(THREAD), TurnStarted(**ON_TURN), *many, DELETIONS[0]])

    assert left_to_clear(database) == 1
    assert len(rows_of_all_tables(database)["projection_messages"]) == 600
    database.events.append_all([renamed("x")])
    assert len(rows_of_all_tables(database)["projection_messages"]) == 600 - deletions.STEP_ROWS
    for _ in range(600 // deletions.STEP_ROWS):
        database.events.append_all([renamed("y")])
    assert left_to_clear(database) == 0


@pytest.mark.usefixtures("all_are_large")
def test_verify_still_finds_a_lost_row_beside_hidden_ones(database: Database) -> None:
    database.events.append_all([*SCENE, DELETIONS[0]])
    lost = schema.projection_turns.c.thread_id == str(OTHER_THREAD)

    change(database, delete(schema.projection_turns).where(lost))

    assert {difference.table for difference in database.projections.verify()} == {"projection_turns"}


@pytest.mark.usefixtures("all_are_large")
def test_a_rebuild_leaves_nothing_to_clear(database: Database) -> None:
    database.events.append_all([*SCENE, DELETIONS[1]])

    database.projections.rebuild()

    assert left_to_clear(database) == 0
    assert len(rows_of_all_tables(database)["projection_messages"]) == 0
    database.events.append_all([project(PROJECT)])
    assert database.projections.verify() == []
