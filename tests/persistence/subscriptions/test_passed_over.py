"""A durable subscription saves how far it has looked: a start does not read again what its filter leaves out."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL, text

from peon.orchestration import OrchestrationEvent, ProjectRenamed, ThreadSelected
from peon.persistence import Database, EventQuery
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.subscriptions import positions

WANTED = ThreadSelected(thread_id=UUID(int=7))
OTHER = ProjectRenamed(project_id=UUID(int=1), name="a")

FILTERS: list[dict[str, Any]] = [{"event_types": ["ThreadSelected"]}, {"query": EventQuery(thread_id=UUID(int=7))}]

filtered = pytest.mark.parametrize("filters", FILTERS, ids=["types", "query"])


@pytest.fixture(autouse=True)
def small_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "PASSED_OVER_EVENTS", 10)


def saved(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.scalars(text("SELECT sequence FROM subscription_positions")).one()


def append(database: Database, *counts: int) -> None:
    """Appends others, one that is wanted, others, and so on."""
    batch: list[OrchestrationEvent] = []
    for count in counts:
        batch += [*[OTHER] * count, WANTED]
    database.events.append_all(batch[:-1])


@filtered
def test_the_distance_is_saved_although_nothing_matches(log_alone: Database, filters: dict[str, Any]) -> None:
    append(log_alone, 9)
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        batches = subscription.batches(timeout=0)
        assert next(batches) == []
        assert (subscription.position, saved(log_alone)) == (9, 0)  # too little to be worth a commit
        append(log_alone, 1)
        assert next(batches) == []
        assert saved(log_alone) == 10
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        assert subscription.position == 10


@filtered
def test_save_position_saves_any_distance(log_alone: Database, filters: dict[str, Any]) -> None:
    append(log_alone, 1, 3)
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        batches = subscription.batches(timeout=0)
        (wanted,) = next(batches)
        assert (wanted.sequence, subscription.position) == (2, 2)
        subscription.save_position()
        assert saved(log_alone) == 2
        assert next(batches) == []
        subscription.save_position()
        assert saved(log_alone) == 5


@filtered
def test_an_event_that_was_not_saved_is_not_passed_over(log_alone: Database, filters: dict[str, Any]) -> None:
    append(log_alone, 1, 20)
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        batches = subscription.batches(timeout=0)
        assert len(next(batches)) == 1
        assert next(batches) == []
        assert saved(log_alone) == 0
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        batches = subscription.batches(timeout=0)
        assert len(next(batches)) == 1
        with log_alone.engine.connect() as connection:
            subscription.save_position(connection=connection)
            connection.rollback()
        assert next(batches) == []
        assert saved(log_alone) == 0
    with log_alone.events.durable_subscription("mailer", **filters) as subscription:
        batches = subscription.batches(timeout=0)
        assert len(next(batches)) == 1
        subscription.save_position()
        assert next(batches) == []
        assert saved(log_alone) == 22
        subscription.save_position()
        append(log_alone, 0, 1)
        assert [stored.sequence for stored in next(batches)] == [23]
        subscription.save_position()
        assert saved(log_alone) == 23


def test_the_distance_is_not_saved_while_the_consumer_has_a_transaction_open(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        append(database, 1, 20)
        with database.events.durable_subscription("mailer", event_types=["ThreadSelected"]) as subscription:
            batches = subscription.batches(timeout=0)
            with database.engine.begin() as connection:
                assert len(next(batches)) == 1
                subscription.save_position(connection=connection)
                assert next(batches) == []
            assert saved(database) == 2
            assert next(batches) == []
            assert saved(database) == 22


def test_the_distance_is_saved_in_an_event_loop_too(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with await AsyncDatabase.open(url=url, maintain_projections=False) as database:
            await database.events.append_all([OTHER, WANTED, *[OTHER] * 20])
            async with database.events.durable_subscription("mailer", event_types=["ThreadSelected"]) as subscription:
                batches = subscription.batches(timeout=0)
                assert len(await anext(batches)) == 1
                assert await anext(batches) == []
                assert subscription.position == 22
            async with database.events.durable_subscription("mailer", event_types=["ThreadSelected"]) as subscription:
                assert subscription.position == 0
                batches = subscription.batches(timeout=0)
                assert len(await anext(batches)) == 1
                await subscription.save_position()
                assert await anext(batches) == []
            async with database.events.durable_subscription("mailer", event_types=["ThreadSelected"]) as subscription:
                assert subscription.position == 22

    asyncio.run(story())
