"""A position that the log has not reached is refused: it is of another log, or of a state that a restore has undone."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL

from peon.orchestration import ProjectRenamed
from peon.persistence import AppendCondition, Database, EventQuery, PositionBeyondEnd
from peon.persistence.asynchronous import AsyncDatabase

RENAMED = ProjectRenamed(project_id=UUID(int=1), name="a")
QUERY = EventQuery(project_id=UUID(int=1))


@pytest.fixture
def database(log_alone: Database) -> Database:
    log_alone.events.append_all([RENAMED] * 8)
    return log_alone


def follow(database: Database, **arguments: Any) -> list[Any]:
    with database.events.subscribe(**arguments) as subscription:
        return next(subscription.batches(timeout=0))


def follow_durably(database: Database, after: int) -> list[Any]:
    with database.events.durable_subscription(f"mailer {after}", after=after) as subscription:
        return next(subscription.batches(timeout=0))


READS: dict[str, Callable[[Database, int], object]] = {
    "stream": lambda database, after: list(database.events.stream(after=after)),
    "stream of types": lambda database, after: list(
        database.events.stream(after=after, event_types=["ProjectCreated"])
    ),
    "stream of a query": lambda database, after: list(database.events.stream(after=after, query=QUERY)),
    "replay": lambda database, after: database.events.replay_from(after + 1),
    "subscribe": lambda database, after: follow(database, after=after),
    "subscribe to types": lambda database, after: follow(database, after=after, event_types=["ProjectCreated"]),
    "subscribe to a query": lambda database, after: follow(database, after=after, query=QUERY),
    "durable subscription": follow_durably,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_after_the_end_finds_nothing_and_one_beyond_it_is_refused(
    database: Database, read: Callable[[Database, int], object]
) -> None:
    assert read(database, 8) == []
    for position in (9, 13, 2**63 - 2):
        with pytest.raises(PositionBeyondEnd, match=f"position {position} is beyond the end of the log, 8,") as caught:
            read(database, position)
        assert (caught.value.position, caught.value.end) == (position, 8)


@pytest.mark.parametrize("position", [2**63, 2**80])
def test_a_position_too_large_for_a_database_is_refused_too(database: Database, position: int) -> None:
    for read in READS.values():
        with pytest.raises(PositionBeyondEnd):
            read(database, position)


def test_an_empty_log_refuses_every_position_but_0(log_alone: Database) -> None:
    assert log_alone.events.replay_from(1) == log_alone.events.replay_all() == []
    with pytest.raises(PositionBeyondEnd):
        log_alone.events.replay_from(2)


def test_a_condition_beyond_the_end_is_refused(database: Database) -> None:
    others = EventQuery(project_id=UUID(int=2))
    for query in (QUERY, others):
        with pytest.raises(PositionBeyondEnd):
            database.events.append_all([RENAMED], condition=AppendCondition(query, after=9))
    with database.engine.begin() as connection:
        with pytest.raises(PositionBeyondEnd):
            database.events.append_all([RENAMED], condition=AppendCondition(others, after=9), connection=connection)
        database.events.append_all([RENAMED], condition=AppendCondition(QUERY, after=8), connection=connection)
        database.events.append_all([RENAMED], condition=AppendCondition(QUERY, after=9), connection=connection)
    assert database.events.last_sequence() == 10


def test_a_subscription_at_the_end_waits_without_an_error(database: Database) -> None:
    with database.events.subscribe(after=8) as subscription:
        batches = subscription.batches(timeout=0)
        assert next(batches) == []
        database.events.append_all([RENAMED])
        assert [stored.sequence for stored in next(batches)] == [9]
        assert next(batches) == []


def test_a_position_beyond_the_end_is_refused_in_an_event_loop(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with await AsyncDatabase.open(url=url, maintain_projections=False) as database:
            await database.events.append_all([RENAMED])
            assert await database.events.replay_from(2) == []
            with pytest.raises(PositionBeyondEnd):
                await database.events.replay_from(3)
            for subscription in (
                database.events.subscribe(after=2),
                database.events.durable_subscription("mailer", after=2),
            ):
                with pytest.raises(PositionBeyondEnd):
                    await anext(subscription)
                await subscription.close()
            with pytest.raises(PositionBeyondEnd):
                await database.events.append_all([RENAMED], condition=AppendCondition(QUERY, after=2))

    asyncio.run(story())
