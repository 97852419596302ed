"""Append conditions: which events conflict, and which of several writers wins."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.conditions import OTHER, PROJECT, THREAD, TURN, conflict, padding
from helpers.processes import PATIENCE, context
from sqlalchemy import URL, text

from peon.orchestration import (
    OrchestrationEvent,
    ProjectCreated,
    ProjectRenamed,
    ThreadDeleted,
    ThreadSelected,
    TurnStarted,
)
from peon.persistence import (
    AppendCondition,
    ConcurrencyError,
    Database,
    EventQuery,
    PersistenceError,
    PositionBeyondEnd,
    ProjectionError,
)
from peon.persistence.log import tag_index

MATCHES: list[tuple[EventQuery, OrchestrationEvent, bool]] = [
    (EventQuery(), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadDeleted"]), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadSelected", "ThreadDeleted"]), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadSelected"]), ThreadDeleted(thread_id=THREAD), False),
    (EventQuery(thread_id=THREAD), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(thread_id=str(THREAD).upper()), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(thread_id=OTHER), ThreadDeleted(thread_id=THREAD), False),
    (EventQuery(tags={"thread_id": THREAD}), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(project_id=PROJECT), ProjectRenamed(project_id=PROJECT, name=str(OTHER)), True),
    (EventQuery(project_id=OTHER), ProjectRenamed(project_id=PROJECT, name=str(OTHER)), False),
    (EventQuery(project_id=PROJECT), ThreadDeleted(thread_id=PROJECT), False),
    (EventQuery(turn_id=TURN, thread_id=THREAD), TurnStarted(turn_id=TURN, thread_id=THREAD), True),
    (EventQuery(turn_id=TURN, thread_id=OTHER), TurnStarted(turn_id=TURN, thread_id=THREAD), False),
    (
        EventQuery(event_types=["TurnCompleted"], turn_id=TURN),
        TurnStarted(turn_id=TURN, thread_id=THREAD),
        False,
    ),
]


@pytest.mark.parametrize(("query", "stored", "matches"), MATCHES)
def test_a_condition_conflicts_with_matching_events(
    database: Database, read: None, query: EventQuery, stored: OrchestrationEvent, matches: bool
) -> None:
    before = database.events.append_all([stored])
    condition = AppendCondition(query, after=0)

    if not matches:
        assert database.events.append_all([stored], condition=condition)[0].sequence == 2
        assert list(database.events.stream(query=query)) == []
        return
    with pytest.raises(ConcurrencyError, match="event 1 was stored after 0 and matches") as caught:
        database.events.append_all([stored], condition=condition)
    assert (caught.value.sequence, caught.value.after) == (1, 0)
    assert database.events.replay_all() == before
    assert list(database.events.stream(query=query)) == before
    informed = AppendCondition(query, after=1)
    assert database.events.append_all([stored], condition=informed)[0].sequence == 2


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_the_error_names_the_first_matching_event_after_the_position(database: Database, read: None) -> None:
    database.events.append_all([ThreadDeleted(thread_id=thread) for thread in (THREAD, OTHER, THREAD, THREAD)])

    conditions = [AppendCondition(EventQuery(thread_id=THREAD), after) for after in (0, 1, 2, 3, 4)]
    assert [conflict(database.events, c) for c in conditions] == [1, 3, 3, 4, None]
    for beyond in (2**63, 2**70):
        with pytest.raises(PositionBeyondEnd):
            conflict(database.events, AppendCondition(EventQuery(thread_id=THREAD), beyond))


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_a_condition_holds_in_a_transaction_of_the_caller(database: Database, read: None) -> None:
    query = EventQuery(thread_id=THREAD)
    with database.engine.begin() as connection:
        database.events.append_all(padding(5), connection=connection)
        (stored,) = database.events.append_all(
            [ThreadDeleted(thread_id=THREAD)], condition=AppendCondition(query, 0), connection=connection
        )
        with pytest.raises(ConcurrencyError):
            database.events.append_all(
                [ThreadDeleted(thread_id=THREAD)], condition=AppendCondition(query, 0), connection=connection
            )
        database.events.append_all(padding(1), connection=connection)

    assert stored.sequence == 6
    assert database.events.last_sequence() == 7
    assert list(database.events.stream(query=query)) == [stored]


def compete(barrier: Any, url: str, rounds: int, wins: Any) -> None:
    with Database.open(url=url, maintain_projections=False) as database:
        for turn in range(rounds):
            thread = UUID(int=turn)
            barrier.wait(PATIENCE)
            query = EventQuery(event_types=["ThreadDeleted"], thread_id=thread)
            if turn % 2:
                query = EventQuery.any_of(EventQuery(turn_id=TURN), query)
            condition = AppendCondition(query, after=0)
            try:
                database.events.append_all([ThreadDeleted(thread_id=thread)], condition=condition)
            except ConcurrencyError:
                continue
            with wins.get_lock():
                wins[turn] += 1


@pytest.mark.postgresql_too("locks")
@pytest.mark.parametrize("rounds", [8, pytest.param(25, marks=pytest.mark.slow)])
def test_exactly_one_of_many_processes_wins_each_round(migrated_lasting_url: URL, rounds: int) -> None:
    processes = 5
    barrier, wins = context.Barrier(processes), context.Array("i", rounds)
    url = migrated_lasting_url.render_as_string(hide_password=False)
    competitors = [context.Process(target=compete, args=(barrier, url, rounds, wins)) for _ in range(processes)]
    for competitor in competitors:
        competitor.start()
    for competitor in competitors:
        competitor.join(PATIENCE)

    assert [competitor.exitcode for competitor in competitors] == [0] * processes
    assert list(wins) == [1] * rounds
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        assert [s.event.thread_id.int for s in database.events.stream()] == list(range(rounds))  # type: ignore[union-attr]


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_threads_that_share_a_commit_see_the_events_of_each_other(database: Database) -> None:
    threads, rounds = 8, 20
    together = threading.Barrier(threads)

    def work(_: int) -> int:
        wins = 0
        for turn in range(rounds):
            together.wait()
            condition = AppendCondition(EventQuery(thread_id=UUID(int=turn)), after=0)
            try:
                database.events.append_all([ThreadDeleted(thread_id=UUID(int=turn))], condition=condition)
                wins += 1
            except ConcurrencyError:
                database.events.append_all(
                    [ThreadSelected(thread_id=uuid4())]
                )  # an append without a condition in the same commit
        return wins

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, range(threads))) == rounds
    assert database.events.last_sequence() == threads * rounds


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_a_conditional_append_that_projections_refuse_stores_nothing(url: URL, migrated: None) -> None:
    with Database.open(url=url) as database:
        condition = AppendCondition(EventQuery(project_id=PROJECT), after=0)
        with pytest.raises(ProjectionError):
            database.events.append_all([ProjectRenamed(project_id=PROJECT, name="x")], condition=condition)
        created = ProjectCreated(project_id=PROJECT, name="x", path="/")
        assert database.events.append_all([created], condition=condition)[0].sequence == 1
        assert database.projections.verify() == []


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_a_condition_is_decided_while_other_writers_keep_appending(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 3)
    monkeypatch.setattr(tag_index.TagIndex, "catch_up", lambda *_, **__: database.events.append_all(padding(10)))
    condition = AppendCondition(EventQuery(thread_id=THREAD), after=0)

    database.events.append_all(padding(10))
    assert database.events.append_all([ThreadDeleted(thread_id=THREAD)], condition=condition)[0].sequence == 21
    with pytest.raises(ConcurrencyError):
        database.events.append_all([ThreadDeleted(thread_id=THREAD)], condition=condition)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_condition_without_events_is_refused_in_a_transaction_with_an_old_snapshot(
    migrated_postgresql_url: URL, level: Any
) -> None:
    with (
        Database.open(url=migrated_postgresql_url, maintain_projections=False) as database,
        database.engine.connect().execution_options(isolation_level=level) as connection,
    ):
        connection.execute(text("SELECT 1 FROM events"))
        database.events.append_all([ThreadDeleted(thread_id=THREAD)])
        with pytest.raises(PersistenceError, match="READ COMMITTED"):
            database.events.append_all([], condition=AppendCondition(EventQuery(), after=0), connection=connection)


def test_a_connection_of_another_database_is_refused(database: Database) -> None:
    with Database.open(url="sqlite://", maintain_projections=False) as other:
        with other.engine.connect() as connection:
            with pytest.raises(ValueError, match="of another database"):
                database.events.append_all([ThreadDeleted(thread_id=THREAD)], connection=connection)
            with pytest.raises(ValueError, match="of another database"):
                database.settings.set("a", 1, connection=connection)
        assert other.events.replay_all() == []
    for wrong in (5, database.engine):
        with pytest.raises(TypeError, match="connection is one of SQLAlchemy's engine"):
            database.events.append_all([ThreadDeleted(thread_id=THREAD)], connection=wrong)  # type: ignore[arg-type]
