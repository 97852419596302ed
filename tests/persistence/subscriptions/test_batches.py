"""Batches, timeouts, and the moment at which a subscription has caught up; for threads and for the event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL, text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, EventDecodeError
from peon.persistence.asynchronous import AsyncDatabase

PATIENCE = 30

WRONG_ARGUMENTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"max_events": 0}, ValueError),
    ({"max_events": True}, TypeError),
    ({"max_events": 1.5}, TypeError),
    ({"timeout": -1}, ValueError),
    ({"timeout": float("nan")}, ValueError),
    ({"timeout": "1"}, TypeError),
]


def renamed(count: int = 1) -> list[Any]:
    return [ProjectRenamed(project_id=UUID(int=1), name=str(number)) for number in range(count)]


def sequences(batch: list[Any]) -> list[int]:
    return [stored.sequence for stored in batch]


@pytest.fixture
def consumers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@asynccontextmanager
async def opened(url: URL) -> AsyncIterator[AsyncDatabase]:
    async with asyncio.timeout(PATIENCE), await AsyncDatabase.open(url=url, maintain_projections=False) as database:
        yield database


class TestThreads:
    def test_batches_have_what_is_stored_and_then_wait(
        self, log_alone: Database, consumers: ThreadPoolExecutor
    ) -> None:
        log_alone.events.append_all(renamed(5))
        with log_alone.events.subscribe() as subscription:
            batches = subscription.batches(2)
            assert [sequences(next(batches)) for _ in range(3)] == [[1, 2], [3, 4], [5]]
            assert subscription.position == 5
            coming = consumers.submit(next, batches)
            log_alone.events.append_all(renamed(1))
            assert sequences(coming.result(PATIENCE)) == [6]

    def test_a_timeout_without_events_gives_an_empty_batch(self, log_alone: Database) -> None:
        with log_alone.events.subscribe() as subscription:
            start = time.monotonic()
            batches = subscription.batches(timeout=0.2)
            assert next(batches) == []
            assert 0.2 <= time.monotonic() - start < 5
            log_alone.events.append_all(renamed(2))
            assert sequences(next(batches)) == [1, 2]

    def test_batches_end_with_the_subscription(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        stop = threading.Event()
        for end in ("stop", "close"):
            subscription = log_alone.events.subscribe(stop=stop if end == "stop" else None)
            consuming = consumers.submit(list, subscription.batches(timeout=None))
            stop.set() if end == "stop" else subscription.close()
            assert consuming.result(PATIENCE) == []

    def test_a_batch_ends_before_an_event_that_cannot_be_decoded(self, log_alone: Database) -> None:
        log_alone.events.append_all(renamed(2))
        with log_alone.engine.begin() as connection:
            connection.execute(text("INSERT INTO events VALUES (3, 'Unheard', '{}', '2026-01-01T00:00:00.000000Z')"))
        with log_alone.events.subscribe() as subscription:
            assert sequences(next(subscription.batches())) == [1, 2]
            with pytest.raises(EventDecodeError):
                next(subscription.batches())
            assert subscription.position == 2

    @pytest.mark.parametrize(("arguments", "error"), WRONG_ARGUMENTS)
    def test_wrong_arguments_are_refused(
        self, log_alone: Database, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        with log_alone.events.subscribe() as subscription, pytest.raises(error):
            subscription.batches(**arguments)

    def test_the_callback_is_called_when_the_subscription_has_caught_up(self, log_alone: Database) -> None:
        log_alone.events.append_all(renamed(3))
        told: list[int] = []
        with log_alone.events.subscribe(on_caught_up=lambda: told.append(subscription.position)) as subscription:
            batches = subscription.batches(2, timeout=0)
            next(batches)
            next(batches)
            assert told == []
            assert next(batches) == []
            assert next(batches) == []
            assert told == [3]
            log_alone.events.append_all(renamed())
            next(batches)
            next(batches)
            assert told == [3, 4]

    def test_an_empty_log_has_been_caught_up_with(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        ready = threading.Event()
        subscription = log_alone.events.subscribe(on_caught_up=ready.set)
        consuming = consumers.submit(list, subscription)
        assert ready.wait(PATIENCE)
        subscription.close()
        assert consuming.result(PATIENCE) == []

    def test_a_callback_that_cannot_be_called_is_refused(self, log_alone: Database) -> None:
        with pytest.raises(TypeError, match="on_caught_up"):
            log_alone.events.subscribe(on_caught_up=True)  # type: ignore[call-overload]


class TestEventLoop:
    def test_batches_have_what_is_stored_and_then_wait(self, url: URL, migrated: None) -> None:
        async def story() -> None:
            async with opened(url) as database:
                await database.events.append_all(renamed(5))
                async with database.events.subscribe() as subscription:
                    batches = subscription.batches(2)
                    assert [sequences(await anext(batches)) for _ in range(3)] == [[1, 2], [3, 4], [5]]
                    coming = asyncio.ensure_future(anext(batches))
                    await asyncio.sleep(0)
                    await database.events.append_all(renamed())
                    assert sequences(await coming) == [6]

        asyncio.run(story())

    def test_a_timeout_gives_an_empty_batch_and_close_ends_the_batches(self, url: URL, migrated: None) -> None:
        async def story() -> None:
            told: list[int] = []
            async with opened(url) as database:
                subscription = database.events.subscribe(on_caught_up=lambda: told.append(subscription.position))
                batches = subscription.batches(timeout=0.1)
                assert await anext(batches) == []
                await database.events.append_all(renamed(2))
                assert sequences(await anext(batches)) == [1, 2]
                assert await anext(batches) == []
                assert told == [0, 2]
                await subscription.close()
                assert [batch async for batch in batches] == []

        asyncio.run(story())

    @pytest.mark.parametrize(("arguments", "error"), WRONG_ARGUMENTS)
    def test_wrong_arguments_are_refused(
        self, url: URL, migrated: None, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        async def story() -> None:
            async with opened(url) as database, database.events.subscribe() as subscription:
                with pytest.raises(error):
                    subscription.batches(**arguments)

        asyncio.run(story())
