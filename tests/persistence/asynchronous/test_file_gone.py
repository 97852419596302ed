"""A file that is deleted, moved or replaced while an event loop has it open."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from helpers.gone_files import WAYS, delete
from helpers.migrated_databases import file_of, names_in
from helpers.processes import PATIENCE
from sqlalchemy import URL, text

from peon.orchestration import ProjectCreated
from peon.persistence import StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase


def created() -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name="tide-table", path="/")


async def append_within(database: AsyncDatabase) -> None:
    async with database.engine.begin() as connection:
        await database.events.append_all([created()], connection=connection)


async def read(database: AsyncDatabase) -> None:
    async with database.read_transaction() as connection:
        await connection.execute(text("SELECT * FROM events"))


async def subscribe(database: AsyncDatabase) -> None:
    async with database.events.subscribe() as subscription:
        await anext(subscription)


async def append_at_once(database: AsyncDatabase) -> None:
    appends = [database.events.append_all([created()]) for _ in range(10)]
    errors = await asyncio.gather(*appends, return_exceptions=True)
    assert all(isinstance(error, StoreUnavailable) for error in errors)
    raise errors[0]  # type: ignore[misc]


CALLS: dict[str, Callable[[AsyncDatabase], Awaitable[object]]] = {
    "append": lambda database: database.events.append_all([created()]),
    "appends at once": append_at_once,
    "append in a transaction": append_within,
    "replay": lambda database: database.events.replay_all(),
    "subscribe": subscribe,
    "read": read,
    "read the state": lambda database: database.read_model.projects(),
    "set": lambda database: database.settings.set("key", "value"),
    "catch up": lambda database: database.projections.catch_up(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_each_call_says_what_happened(
    migrated_sqlite_url: URL, way: str, call: Callable[[AsyncDatabase], Awaitable[object]]
) -> None:
    path = file_of(migrated_sqlite_url)

    async def story() -> None:
        async with await AsyncDatabase.open(url=migrated_sqlite_url) as database:
            await database.events.append_all([created()])
            WAYS[way](path)
            names = names_in(path.parent)
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=way) as caught:
                    await call(database)
                assert "migrat" not in str(caught.value)
            assert names_in(path.parent) == names

    asyncio.run(asyncio.wait_for(story(), PATIENCE))


@pytest.mark.parametrize("way", WAYS)
def test_a_waiting_subscription_gets_the_error(migrated_sqlite_url: URL, way: str) -> None:
    path = file_of(migrated_sqlite_url)

    async def story() -> None:
        async with (
            await AsyncDatabase.open(url=migrated_sqlite_url) as database,
            database.events.subscribe() as subscription,
        ):
            waiter = asyncio.ensure_future(anext(subscription))
            await database.events.append_all([created()])
            await waiter
            waiter = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(0)
            WAYS[way](path)
            with pytest.raises(StoreUnavailable, match=way):
                await waiter

    asyncio.run(asyncio.wait_for(story(), PATIENCE))
    assert path.exists() == (way == "replaced")


def test_a_new_database_may_be_created_after_a_close(migrated_sqlite_url: URL) -> None:
    async def story() -> None:
        async with await AsyncDatabase.open(url=migrated_sqlite_url) as database:
            delete(file_of(migrated_sqlite_url))
            with pytest.raises(StoreUnavailable, match="deleted"):
                await database.events.append_all([created()])
        async with await AsyncDatabase.open(url=migrated_sqlite_url) as database:
            (stored,) = await database.events.append_all([created()])
            assert stored.sequence == 1

    asyncio.run(asyncio.wait_for(story(), PATIENCE))
