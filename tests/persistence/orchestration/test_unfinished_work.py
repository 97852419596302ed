"""Closing what a process that was killed left open: in one append, and once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import pytest
from helpers.processes import context, exit_codes_of
from helpers.recovery_processes import close_unfinished_work, start_after_kill
from sqlalchemy import URL

from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    ApprovalStatus,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    TurnCompleted,
    TurnInterrupted,
    TurnStarted,
    TurnStatus,
)
from peon.persistence import Database, ProjectionError

PROJECT, RUNNING, WAITING, IDLE, STUCK, TURN, WAITING_TURN, ENDED_TURN, APPROVAL, DECIDED, NEW_TURN = (
    UUID(int=number) for number in range(1, 12)
)


def status(thread_id: UUID, new: ThreadStatus) -> ThreadStatusChanged:
    return ThreadStatusChanged(thread_id=thread_id, status=new)


def left_open() -> list[OrchestrationEvent]:
    """Returns two running turns, of which one waits for an approval, and a thread that has no turn but is `running`."""
    threads = [
        ThreadCreated(
            thread_id=thread_id,
            project_id=PROJECT,
            provider=Provider.CODEX,
            model="a-model",
            runtime_mode=RuntimeMode.SUPERVISED,
        )
        for thread_id in (RUNNING, WAITING, IDLE, STUCK)
    ]
    waiting = {"turn_id": WAITING_TURN, "thread_id": WAITING}
    return [
        ProjectCreated(project_id=PROJECT, name="tide-table", path="/"),
        *threads,
        TurnStarted(turn_id=ENDED_TURN, thread_id=IDLE),
        TurnCompleted(turn_id=ENDED_TURN, thread_id=IDLE),
        status(STUCK, ThreadStatus.RUNNING),
        TurnStarted(turn_id=TURN, thread_id=RUNNING),
        status(RUNNING, ThreadStatus.RUNNING),
        TurnStarted(**waiting),
        ApprovalRequested(approval_id=DECIDED, action="write", detail=None, **waiting),
        ActionApproved(approval_id=DECIDED, **waiting),
        ApprovalRequested(approval_id=APPROVAL, action="delete", detail=None, **waiting),
        status(WAITING, ThreadStatus.AWAITING_APPROVAL),
    ]


CLOSING = ["ActionRejected", "TurnInterrupted", "TurnInterrupted", *["ThreadStatusChanged"] * 3]


def types_after(database: Database, sequence: int) -> list[str]:
    return [stored.event.type for stored in database.events.stream(after=sequence)]


def test_one_append_closes_everything(database: Database) -> None:
    database.events.append_all(left_open())
    unfinished = database.read_model.unfinished_work()
    assert [turn.id for turn in unfinished.turns] == [TURN, WAITING_TURN]
    assert [approval.id for approval in unfinished.pending_approvals] == [APPROVAL]
    assert [thread.id for thread in unfinished.threads] == [RUNNING, WAITING, STUCK]

    stored = database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)

    assert [each.event.type for each in stored] == CLOSING
    state = database.read_model
    assert state.unfinished_work().closing_events() == ()
    assert [thread.status for thread in state.threads(PROJECT)] == [ThreadStatus.IDLE] * 4
    turns = [state.turn(turn_id) for turn_id in (TURN, WAITING_TURN, ENDED_TURN)]
    ended = [TurnStatus.INTERRUPTED, TurnStatus.INTERRUPTED, TurnStatus.COMPLETED]
    assert [turn and turn.status for turn in turns] == ended
    rejected = state.approval(APPROVAL)
    assert rejected is not None
    assert (rejected.status, rejected.reason) == (ApprovalStatus.REJECTED, "interrupted: the application ended")


def test_the_part_of_some_threads(database: Database) -> None:
    database.events.append_all(left_open())
    whole = database.read_model.unfinished_work()

    part = whole.of_threads({WAITING, IDLE})

    assert [event.type for event in part.closing_events()] == [
        ActionRejected.__name__,
        TurnInterrupted.__name__,
        ThreadStatusChanged.__name__,
    ]
    assert part.command_id != whole.command_id
    database.events.append_all(part.closing_events(), command_id=part.command_id)
    assert [turn.id for turn in database.read_model.running_turns()] == [TURN]


def test_a_late_repetition_does_not_touch_what_began_since(database: Database) -> None:
    database.events.append_all(left_open())
    early, late = database.read_model.unfinished_work(), database.read_model.unfinished_work()
    first = database.events.append_all(early.closing_events(), command_id=early.command_id)
    database.events.append_all(
        [TurnStarted(turn_id=NEW_TURN, thread_id=RUNNING), status(RUNNING, ThreadStatus.RUNNING)]
    )

    again = database.events.append_all(late.closing_events(), command_id=late.command_id)

    assert again == first
    assert [turn.id for turn in database.read_model.running_turns()] == [NEW_TURN]


def test_a_thread_that_is_left_open_twice_is_closed_twice(database: Database) -> None:
    database.events.append_all(left_open()[:5])
    for _ in range(2):
        database.events.append_all([status(STUCK, ThreadStatus.RUNNING)])
        unfinished = database.read_model.unfinished_work()
        stored = database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)
        assert stored[0].sequence == database.events.last_sequence()


def test_a_turn_that_ended_meanwhile_refuses_the_whole(database: Database) -> None:
    database.events.append_all(left_open())
    unfinished = database.read_model.unfinished_work()
    database.events.append_all([TurnCompleted(turn_id=TURN, thread_id=RUNNING)])
    before = database.events.last_sequence()

    with pytest.raises(ProjectionError, match="ended already"):
        database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)

    assert database.events.last_sequence() == before
    assert [turn.id for turn in database.read_model.unfinished_work().turns] == [WAITING_TURN]


def test_threads_that_start_together_close_it_once(migrated_lasting_url: URL) -> None:
    both = Barrier(2)
    with Database.open(url=migrated_lasting_url) as database, Database.open(url=migrated_lasting_url) as other:
        database.events.append_all(left_open())
        before = database.events.last_sequence()
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda each: close_unfinished_work(each, both), (database, other))

        assert first == second
        assert types_after(database, before) == CLOSING


def test_processes_that_start_together_close_it_once(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(left_open())
        before = database.events.last_sequence()
    url = migrated_lasting_url.render_as_string(hide_password=False)
    barriers = context.Barrier(2), context.Barrier(2)

    codes = exit_codes_of([(start_after_kill, (*barriers, url))] * 2, patience=60)

    assert codes == [0, 0]
    with Database.open(url=migrated_lasting_url) as database:
        assert types_after(database, before) == CLOSING
