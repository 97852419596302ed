"""One consumer of a name is active at a time: tasks, threads and processes wait for one another."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy import URL

from peon.orchestration import ProjectRenamed
from peon.persistence import Database
from peon.persistence.asynchronous import AsyncDatabase

PATIENCE = 30


@asynccontextmanager
async def opened(url: URL) -> AsyncIterator[AsyncDatabase]:
    async with asyncio.timeout(PATIENCE), await AsyncDatabase.open(url=url, maintain_projections=False) as database:
        await database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(5)])
        yield database


def test_the_second_task_waits_and_resumes_where_the_first_saved(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database:
            first = database.events.durable_subscription("mailer")
            assert (await anext(first)).sequence == 1
            await first.save_position()
            async with database.events.durable_subscription("mailer") as second:
                assert await anext(second.batches(timeout=0.2)) == []
                coming = asyncio.ensure_future(anext(second))
                assert (await anext(first)).sequence == 2
                await first.save_position()
                await anext(first)
                assert not coming.done()
                await first.close()
                assert (await coming).sequence == 3
                await second.save_position()
                assert second.position == 3

    asyncio.run(story())


@pytest.mark.postgresql_too("the lock of the consumer")
def test_a_task_waits_for_a_thread(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database:
            blocking = await asyncio.to_thread(Database.open, url=migrated_lasting_url, maintain_projections=False)
            first = blocking.events.durable_subscription("mailer")
            await asyncio.to_thread(next, first)
            async with database.events.durable_subscription("mailer") as second:
                assert await anext(second.batches(timeout=0.2)) == []
                await asyncio.to_thread(blocking.close)
                assert (await anext(second)).sequence == 1

    asyncio.run(story())


@pytest.mark.parametrize("end", ["cancel", "close", "stop"])
def test_the_wait_for_the_active_consumer_can_be_ended(url: URL, migrated: None, end: str) -> None:
    async def story() -> None:
        async with opened(url) as database:
            stop = asyncio.Event()
            first = database.events.durable_subscription("mailer")
            await anext(first)
            second = database.events.durable_subscription("mailer", stop=stop)
            coming = asyncio.ensure_future(anext(second, None))
            await asyncio.sleep(0.05)
            if end == "cancel":
                coming.cancel()
            elif end == "close":
                await second.close()
            else:
                stop.set()
            (outcome,) = await asyncio.gather(coming, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError) if end == "cancel" else outcome is None
            await second.close()
            await first.close()
            third = database.events.durable_subscription("mailer")
            assert (await anext(third)).sequence == 1
            await third.close()

    asyncio.run(story())


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_place_that_was_being_taken_is_given_up_by_close(url: URL, migrated: None, turns: int) -> None:
    async def story() -> None:
        async with opened(url) as database:
            first = database.events.durable_subscription("mailer")
            coming = asyncio.ensure_future(anext(first, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await first.close()
            async with database.events.durable_subscription("mailer") as second:
                assert (await anext(second)).sequence == 1

    asyncio.run(story())


def test_a_consumer_that_is_no_longer_used_gives_its_place_up(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with opened(url) as database:
            async for stored in database.events.durable_subscription("mailer"):
                assert stored.sequence == 1
                break
            gc.collect()
            async with database.events.durable_subscription("mailer") as second:
                assert (await anext(second)).sequence == 1

    asyncio.run(story())


def test_events_that_were_read_before_the_place_was_lost_are_not_delivered(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with opened(migrated_lasting_url) as database:
            first = database.events.durable_subscription("mailer")
            await anext(first)  # has read all five
            await first.save_position()
            assert first._saved is not None
            first._saved.consumer_lock.release()  # as after a lost connection to a server
            async with database.events.durable_subscription("mailer") as second:
                assert [(await anext(second)).sequence for _ in range(2)] == [2, 3]
                await second.save_position()
            assert (await anext(first)).sequence == 4
            await first.close()

    asyncio.run(story())
