"""The size of the connection pool, and arguments that are passed on to the driver."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, text

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database, StoreUnavailable, create_engine
from peon.persistence.asynchronous import AsyncDatabase, create_async_engine


def blocking(url: URL | str, **options: Any) -> Engine:
    return create_engine(url, **options)


def asynchronous(url: URL | str, **options: Any) -> Engine:
    return create_async_engine(url, **options).sync_engine


@pytest.fixture(params=[blocking, asynchronous])
def create(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    function: Callable[..., Engine] = request.param
    return function


def size_and_timeout(engine: Engine) -> tuple[int, float]:
    pool: Any = engine.pool
    return pool.size(), pool.timeout()


def test_size_and_timeout_are_those_of_sqlalchemy(create: Callable[..., Engine], lasting_url: URL) -> None:
    assert size_and_timeout(create(lasting_url)) == (5, 30)
    assert size_and_timeout(create(lasting_url, pool_size=20, pool_timeout=2.5)) == (20, 2.5)
    assert size_and_timeout(create(lasting_url, pool_size=0)) == (0, 30)


def test_a_database_in_memory_has_one_connection(create: Callable[..., Engine]) -> None:
    assert size_and_timeout(create("sqlite://", busy_timeout=7)) == (1, 7)
    assert size_and_timeout(create("sqlite://", pool_size=1, pool_timeout=2)) == (1, 2)
    with pytest.raises(ValueError, match="in memory has a single connection"):
        create("sqlite://", pool_size=2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pool_size": -1}, ValueError),
        ({"pool_size": 2.0}, TypeError),
        ({"pool_size": True}, TypeError),
        ({"pool_timeout": -1}, ValueError),
        ({"pool_timeout": float("nan")}, ValueError),
        ({"pool_timeout": float("inf")}, ValueError),
        ({"pool_timeout": "30"}, TypeError),
        ({"connect_args": [("timeout", 1)]}, TypeError),
        ({"connect_args": {"isolation_level": "IMMEDIATE"}}, ValueError),
    ],
)
def test_wrong_values_are_named(
    create: Callable[..., Engine], tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        create(f"sqlite:///{tmp_path}/peon.db", **options)


def test_an_argument_that_peon_sets_is_refused_on_postgresql(create: Callable[..., Engine]) -> None:
    with pytest.raises(ValueError, match="client_encoding"):
        create("postgresql+psycopg://", connect_args={"client_encoding": "latin1"})
    create("postgresql+psycopg://", connect_args={"client_encoding": "utf8"})


def test_an_exhausted_pool_says_how_to_enlarge_it(migrated_lasting_url: URL) -> None:
    config = AppConfig(database={"pool_size": 1, "pool_timeout": 0.1})
    with Database.open(config, url=migrated_lasting_url) as database, ExitStack() as stack:
        for _ in range(11):
            stack.enter_context(database.engine.connect())
        with pytest.raises(StoreUnavailable, match=r"raise database\.pool_size"):
            database.settings.all()


def test_arguments_of_the_driver_are_merged_with_those_of_peon(postgresql_url: URL) -> None:
    arguments = {"application_name": "tides"}
    with Database.open(url=postgresql_url, connect_args=arguments) as database:
        with database.engine.connect() as connection:
            assert connection.scalar(text("SHOW application_name")) == "tides"
            assert connection.scalar(text("SHOW client_encoding")) == "UTF8"
        database.settings.set("a", 1)

    async def application_name() -> Any:
        async with (
            await AsyncDatabase.open(url=postgresql_url, connect_args=arguments) as database,
            database.engine.connect() as connection,
        ):
            return await connection.scalar(text("SHOW application_name"))

    assert asyncio.run(application_name()) == "tides"


def test_arguments_of_the_driver_keep_what_peon_sets_on_sqlite(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url, connect_args={"cached_statements": 7}) as database:
        with database.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            assert driver.isolation_level is None
        database.settings.set("a", 1)


def test_a_subscription_in_an_event_loop_connects_with_the_same_arguments(
    postgresql_url: URL, postgresql_server: URL
) -> None:
    # The schema is in the arguments and not in the address.
    arguments = {"options": postgresql_url.query["options"]}

    async def follow() -> OrchestrationEvent:
        async with (
            await AsyncDatabase.open(url=postgresql_server, connect_args=arguments) as database,
            await AsyncDatabase.open(url=postgresql_url, maintain_projections=False) as other,
            database.events.subscribe() as subscription,
        ):
            waiting = asyncio.ensure_future(anext(subscription))
            await other.events.append_all([ProjectRenamed(project_id=uuid4(), name="new")])
            return (await asyncio.wait_for(waiting, 30)).event

    with Database.open(url=postgresql_url, maintain_projections=False):
        pass
    assert isinstance(asyncio.run(follow()), ProjectRenamed)
