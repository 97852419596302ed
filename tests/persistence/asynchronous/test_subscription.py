"""Subscriptions of tasks behave like those of threads."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from helpers.processes import context
from helpers.subscription_processes import append_names
from sqlalchemy import URL

from peon.orchestration import ProjectRenamed, ThreadSelected
from peon.persistence import EventDecodeError, EventQuery, SubscriptionConflict
from peon.persistence.asynchronous import AsyncDatabase, AsyncSubscription
from peon.persistence.log.stored_event import StoredEvent

PATIENCE = 30


def renamed(name: str = "x") -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


@asynccontextmanager
async def opened(url: URL) -> AsyncIterator[AsyncDatabase]:
    async with asyncio.timeout(PATIENCE), await AsyncDatabase.open(url=url, maintain_projections=False) as database:
        yield database
    deadline = time.monotonic() + PATIENCE
    while any(thread.name == "peon-watcher" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def take(subscription: AsyncSubscription[Any], count: int) -> list[StoredEvent[Any]]:
    return [await anext(subscription) for _ in range(count)]


async def until_waiting(database: AsyncDatabase, count: int = 1) -> None:
    while len(database.events._notifier._wakes) < count:
        await asyncio.sleep(0.001)


@pytest.mark.postgresql_too("the driver for tasks")
def test_yields_stored_events_and_then_new_ones(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database:
            stored = await database.events.append_all([renamed("a"), renamed("b")])
            async with database.events.subscribe() as subscription:
                assert await take(subscription, 2) == stored
                coming = asyncio.create_task(take(subscription, 30))
                await until_waiting(database)
                appended = await asyncio.gather(*(database.events.append_all([renamed(str(n))]) for n in range(30)))
                assert await coming == sorted(event for batch in appended for event in batch)
                assert subscription.position == 32

    asyncio.run(story())


@pytest.mark.postgresql_too("the server's notifications")
def test_wakes_after_an_append_by_another_process(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database, database.events.subscribe() as subscription:
            coming = asyncio.create_task(take(subscription, 10))
            await until_waiting(database)
            address = migrated_lasting_url.render_as_string(hide_password=False)
            context.Process(target=append_names, args=(address, [str(n) for n in range(10)])).start()
            assert [stored.event.name for stored in await coming] == [str(n) for n in range(10)]

    asyncio.run(story())


def test_yields_only_matching_events(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database:
            query = EventQuery(thread_id=UUID(int=7))
            async with database.events.subscribe(query=query, after=1) as subscription:
                await database.events.append_all([ThreadSelected(thread_id=UUID(int=7)), renamed()])
                await database.events.append_all([ThreadSelected(thread_id=UUID(int=7))])
                assert (await anext(subscription)).sequence == 3

    asyncio.run(story())


@pytest.mark.parametrize("end", [asyncio.Event, threading.Event])
def test_ends_when_its_stop_event_is_set(url: URL, migrated: None, end: type[Any]) -> None:
    async def story() -> None:
        async with opened(url) as database:
            ending = end()
            consuming = asyncio.create_task(take(database.events.subscribe(stop=ending), 1))
            await until_waiting(database)
            ending.set()
            with pytest.raises(StopAsyncIteration):
                await consuming

    asyncio.run(story())


def test_ends_when_it_is_closed(url: URL, migrated: None) -> None:
    async def consume(subscription: AsyncSubscription[Any]) -> list[int]:
        return [stored.sequence async for stored in subscription]

    async def story() -> None:
        async with opened(url) as database:
            await database.events.append_all([renamed()])
            first, second = database.events.subscribe(), database.events.subscribe()
            consuming = [asyncio.create_task(consume(subscription)) for subscription in (first, second)]
            await until_waiting(database, 2)
            await first.close()
            assert await consuming[0] == [1]
        assert await consuming[1] == [1]  # it ends with the database

    asyncio.run(story())


def test_ends_when_it_is_garbage_collected(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database:

            async def consume_one() -> None:
                async for _ in database.events.subscribe():
                    return

            consuming = asyncio.create_task(consume_one())
            await until_waiting(database)
            await database.events.append_all([renamed()])
            await consuming
            gc.collect()
            assert not database.events._notifier._wakes

    asyncio.run(story())


@pytest.mark.parametrize("cancellations", [1, 2, 3])
def test_ends_after_any_number_of_cancellations(migrated_lasting_url: URL, cancellations: int) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database:
            subscription = database.events.subscribe()

            async def follow() -> None:
                async with subscription:
                    await take(subscription, 1)

            following = asyncio.create_task(follow())
            await until_waiting(database)
            for _ in range(cancellations):
                following.cancel()
                await asyncio.sleep(0)
            await asyncio.wait([following])
            await database.events.close()
            assert not database.events._notifier._wakes

    asyncio.run(story())


def test_a_cancelled_wait_loses_nothing(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database, database.events.subscribe() as subscription:
            received: list[int] = []

            async def produce() -> None:
                for _ in range(60):
                    await database.events.append_all([renamed()])

            producing = asyncio.create_task(produce())
            turn = 0
            while len(received) < 60:
                waiting = asyncio.create_task(anext(subscription))
                for _ in range(turn % 7):
                    await asyncio.sleep(0)
                waiting.cancel()
                turn += 1
                (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
                if not isinstance(outcome, BaseException):
                    received.append(outcome.sequence)
            await producing
            assert received == [*range(1, 61)]

    asyncio.run(story())


@pytest.mark.postgresql_too("the driver for tasks")
def test_a_wait_that_is_cancelled_during_a_read_misses_no_event(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database, database.events.subscribe() as subscription:
            for turns in range(1, 40):
                waiting = asyncio.create_task(anext(subscription))
                await until_waiting(database)
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                (stored,) = await database.events.append_all([renamed(str(turns))])
                assert await anext(subscription) == stored

    asyncio.run(story())


def test_survives_the_cancellation_of_all_tasks_during_a_read(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database, database.events.subscribe() as subscription:
            stored = await database.events.append_all([renamed(str(number)) for number in range(300)])
            me = asyncio.current_task()
            for turns in range(0, 30, 3):
                waiting = asyncio.create_task(anext(subscription))
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in asyncio.all_tasks() - {me}:
                    task.cancel()
                (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
                if isinstance(outcome, StoredEvent):
                    assert outcome == stored[outcome.sequence - 1]
            rest = await take(subscription, 300 - subscription.position)
            assert rest == stored[300 - len(rest) :]

    asyncio.run(story())


def test_a_durable_subscription_resumes_at_the_saved_position(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database:
            await database.events.append_all([renamed()] * 5)
            async with database.events.durable_subscription("mailer") as subscription:
                await take(subscription, 2)
                async with database.engine.begin() as connection:
                    await database.settings.set("sent", 2, connection=connection)
                    await subscription.save_position(connection=connection)
                await take(subscription, 2)
                async with database.engine.connect() as connection:
                    await subscription.save_position(connection=connection)
                    await connection.rollback()
            other = database.events.durable_subscription("mailer")
            assert (await anext(other)).sequence == 3
            await other.save_position()
            await take(other, 1)
            assert other._saved is not None
            other._saved.consumer_lock.release()  # as after a lost connection to a server
            async with database.events.durable_subscription("mailer", after=4) as again:
                assert again.position == 3
                await take(again, 1)
                await again.save_position()
            with pytest.raises(SubscriptionConflict):
                await other.save_position()

    asyncio.run(story())


def test_an_undecodable_event_keeps_its_place(sqlite_url: URL) -> None:
    async def story() -> None:
        async with opened(sqlite_url) as database:
            await database.events.append_all([renamed()] * 2)
            async with database.engine.begin() as connection:
                await connection.exec_driver_sql(
                    "INSERT INTO events VALUES (3, 'Unheard', '{}', '2026-01-01T00:00:00.000000Z')"
                )
            async with database.events.subscribe() as subscription:
                assert [stored.sequence for stored in await take(subscription, 2)] == [1, 2]
                for _ in range(2):
                    with pytest.raises(EventDecodeError):
                        await anext(subscription)
                assert subscription.position == 2

    asyncio.run(story())


def test_two_tasks_cannot_share_a_subscription(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database, database.events.subscribe() as subscription:
            waiting = asyncio.create_task(take(subscription, 1))
            await until_waiting(database)
            with pytest.raises(RuntimeError, match="for one"):
                await anext(subscription)
            await database.events.append_all([renamed()])
            assert len(await waiting) == 1

    asyncio.run(story())
