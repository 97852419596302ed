"""Subscriptions whose connection to the server stays open, but carries nothing any more."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from helpers.stalling_network import Network
from sqlalchemy import URL

from peon.orchestration import ProjectRenamed
from peon.persistence import Database
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.backends import postgresql_watching

PATIENCE = 30


def renamed() -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name="x")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def network(migrated_postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(postgresql_watching, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(postgresql_watching, "ANSWER_SECONDS", 0.2)
    with Network(migrated_postgresql_url) as network:
        yield network


def test_a_thread_receives_what_others_append(network: Network, migrated_postgresql_url: URL) -> None:
    with (
        Database.open(url=network.url, maintain_projections=False) as database,
        Database.open(url=migrated_postgresql_url, maintain_projections=False) as other,
        ThreadPoolExecutor(1) as consumer,
        database.events.subscribe() as subscription,
    ):
        for number in range(3):
            coming = consumer.submit(next, subscription)
            wait_for(lambda: bool(database.events._notifier._wakes))
            network.freeze_listeners()
            other.events.append_all([renamed()])
            assert coming.result(PATIENCE).sequence == number + 1


def test_a_task_receives_what_others_append(network: Network, migrated_postgresql_url: URL) -> None:
    async def story() -> None:
        async with (
            await AsyncDatabase.open(url=network.url, maintain_projections=False) as database,
            await AsyncDatabase.open(url=migrated_postgresql_url, maintain_projections=False) as other,
            database.events.subscribe() as subscription,
        ):
            for number in range(3):
                coming = asyncio.create_task(anext(subscription))
                while not database.events._notifier._wakes:
                    await asyncio.sleep(0.001)
                network.freeze_listeners()
                await other.events.append_all([renamed()])
                async with asyncio.timeout(PATIENCE):
                    assert (await coming).sequence == number + 1

    asyncio.run(story())


def test_the_watcher_opens_another_connection(
    network: Network, migrated_postgresql_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "peon.connections")
    with (
        Database.open(url=network.url, maintain_projections=False) as database,
        ThreadPoolExecutor(1) as consumer,
    ):
        coming = consumer.submit(list, database.events.subscribe())
        wait_for(lambda: bool(database.events._notifier._wakes))
        network.freeze_listeners()
        wait_for(lambda: "was interrupted: TimeoutError" in caplog.text)
        wait_for(lambda: re.search(r"watching \S+ again", caplog.text) is not None)
        database.close()
        assert coming.result(PATIENCE) == []
