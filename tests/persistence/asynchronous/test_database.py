"""The asynchronous API equals that of threads on every backend, and does not block the event loop."""

import asyncio
import gc
import inspect
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from helpers.asynchronous_processes import BATCH, end_the_event_loop_in_the_middle
from helpers.processes import exit_codes
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, insert, text
from sqlalchemy.event import listen
from sqlalchemy.exc import SQLAlchemyError

from peon import UndecodableEvent
from peon.config import AppConfig, DatabaseConfig
from peon.orchestration import OrchestrationEvent, ProjectCreated, ProjectDeleted, ProjectRenamed
from peon.persistence import (
    AppendCondition,
    CommandConflict,
    ConcurrencyError,
    Database,
    DurableSubscription,
    EventDecodeError,
    EventQuery,
    EventStore,
    Maintenance,
    PersistenceError,
    ProjectionError,
    Projections,
    ReadModel,
    SchemaOutOfDate,
    SettingsStore,
    StoreUnavailable,
    Subscription,
)
from peon.persistence.asynchronous import (
    AsyncDatabase,
    AsyncDurableSubscription,
    AsyncEventStore,
    AsyncSubscription,
)
from peon.persistence.runtime.event_loop import PAUSE_ITEMS
from peon.persistence.schema import events as log

PATIENCE = 60

COUNT = 10_000
"""The number of events in a long log."""

Story = Callable[[AsyncDatabase], Awaitable[None]]
Work = Callable[[AsyncDatabase], Awaitable[Any]]


def created(name: str = "a") -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name=name, path="/")


LONG_WORK: dict[str, Work] = {
    "replay": lambda database: database.events.replay_all(),
    "append": lambda database: database.events.append_all([created("x" * 200) for _ in range(COUNT)]),
    "snapshot": lambda database: database.read_model.snapshot(),
    "list": lambda database: database.read_model.projects(),
    "rebuild": lambda database: database.projections.rebuild(),
    "verify": lambda database: database.projections.verify(),
}


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def renamed(name: str = "x", project: int = 1) -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=project), name=name)


@asynccontextmanager
async def opened(
    url: URL, *, maintain_projections: bool = True, config: AppConfig | None = None
) -> AsyncIterator[AsyncDatabase]:
    async with (
        asyncio.timeout(PATIENCE),
        await AsyncDatabase.open(config, url=url, maintain_projections=maintain_projections) as database,
    ):
        yield database
        await database.events.close()
        assert database.engine.pool.checkedout() == 0, "a connection was not returned to the pool"  # type: ignore[attr-defined]


def run(url: URL, story: Story, *, maintain_projections: bool = True, config: AppConfig | None = None) -> None:
    async def tell() -> None:
        async with opened(url, maintain_projections=maintain_projections, config=config) as database:
            await story(database)

    asyncio.run(tell())


def names(stored: list[Any]) -> list[str]:
    return [s.event.name for s in stored]


def parameters_of(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Returns name, kind, default and type of each parameter; only the type of a connection may differ."""
    return [
        (
            each.name,
            each.kind,
            each.default,
            re.sub(r"[\w.]+\.(Async)?Connection\b", "Connection", str(each.annotation)),
        )
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]


class TestFace:
    @pytest.mark.parametrize(
        ("synchronous", "asynchronous"),
        [
            (Database.open(url="sqlite:///:memory:"), "database"),
            (EventStore, AsyncEventStore),
            (Projections, "projections"),
            (ReadModel, "read_model"),
            (SettingsStore, "settings"),
            (Maintenance, "maintenance"),
            (Subscription, AsyncSubscription),
            (DurableSubscription, AsyncDurableSubscription),
        ],
        ids=lambda face: face if isinstance(face, str) else getattr(face, "__name__", "face"),
    )
    def test_has_the_members_and_parameters_of_the_synchronous_api(self, synchronous: Any, asynchronous: Any) -> None:
        async def member() -> Any:
            async with opened(URL.create("sqlite", database=":memory:")) as database:
                return database if asynchronous == "database" else getattr(database, asynchronous)

        face = asyncio.run(member()) if isinstance(asynchronous, str) else asynchronous
        apart = {"apply"}  # AsyncEventStore calls it on the synchronous object
        for name in {name for name in dir(synchronous) if not name.startswith("_")} - apart:
            mine, other = getattr(synchronous, name), getattr(face, name, None)
            if name == "position" and isinstance(mine, property):
                continue  # there it is an attribute of the instance
            assert other is not None, name
            if inspect.isfunction(mine) or inspect.ismethod(mine):
                assert parameters_of(other) == parameters_of(mine), name

    @pytest.mark.postgresql_too("the driver")
    def test_appends_and_reads(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            events, read_model = database.events, database.read_model
            first, second = created("a"), created("b")
            stored = await events.append_all([first, second])
            assert [s.sequence for s in stored] == [1, 2]
            assert await events.replay_all() == stored
            assert await events.replay_from(2) == stored[1:]
            assert [s async for s in events.stream(limit=1)] == stored[:1]
            assert [s async for s in events.stream(query=EventQuery(project_id=second.project_id))] == stored[1:]
            assert [s async for s in events.stream(event_types=["ProjectDeleted"])] == []
            assert await events.last_sequence() == 2
            assert await events.append_all([]) == []

            assert [project.name for project in await read_model.projects(limit=1)] == ["a"]
            assert (await read_model.snapshot()).sequence == 2
            assert await database.projections.position() == 2
            assert await database.projections.verify() == []
            await database.projections.rebuild()
            assert await database.projections.problems() == []

            await database.settings.set("theme", "dark")
            assert await database.settings.get("theme", type=str) == "dark"
            assert await database.settings.get("size", 12, type=int) == 12
            assert await database.settings.all() == {"theme": "dark"}
            assert await database.settings.delete("theme")

        run(url, story)

    @pytest.mark.postgresql_too("the driver")
    def test_raises_the_same_errors_for_appends(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            event, command = created(), uuid4()
            stored = await database.events.append_all([event], command_id=command)
            assert await database.events.append_all([event], command_id=command) == stored
            with pytest.raises(CommandConflict):
                await database.events.append_all([created("b")], command_id=command)
            with pytest.raises(ConcurrencyError):
                await database.events.append_all([created()], condition=AppendCondition(EventQuery(), after=0))
            with pytest.raises(ProjectionError):
                await database.events.append_all([ProjectDeleted(project_id=uuid4())])
            with pytest.raises(TypeError, match="takes a list"):
                await database.events.append_all(event)  # type: ignore[arg-type]
            assert await database.events.replay_all() == stored

        run(url, story)

    def test_takes_part_in_a_transaction_of_the_caller(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            async with database.engine.connect() as connection:
                await database.events.append_all([created()], connection=connection)
                await database.settings.set("a", 1, connection=connection)
                await connection.rollback()
            assert await database.events.replay_all() == []
            async with database.engine.begin() as connection:
                await database.events.append_all([created()], connection=connection)
                await database.settings.set("a", 1, connection=connection)
            assert await database.events.last_sequence() == await database.settings.get("a")
            assert await database.projections.verify() == []
            with pytest.raises(TypeError, match="is an AsyncConnection"):
                await database.events.append_all([created()], connection=object())  # type: ignore[arg-type]

        run(url, story)

    def test_reads_and_writes_a_database_that_threads_created(self, migrated_lasting_url: URL) -> None:
        with Database.open(url=migrated_lasting_url) as database:
            stored = database.events.append_all([created("a")])

        async def story(database: AsyncDatabase) -> None:
            assert await database.events.replay_all() == stored
            stored.extend(await database.events.append_all([created("b")]))

        run(migrated_lasting_url, story)
        with Database.open(url=migrated_lasting_url) as database:
            assert database.events.replay_all() == stored
            assert database.projections.verify() == []

    def test_a_stream_yields_the_events_before_an_undecodable_one(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            await database.events.append_all([renamed()] * 7)
            row = {"sequence": 8, "event_type": "Unheard", "payload": "{}", "stored_at": "2026-01-01T00:00:00.000000Z"}
            async with database.engine.begin() as connection:
                await connection.execute(insert(log).values(row))
            await database.events.append_all([renamed()])
            read = []
            with pytest.raises(EventDecodeError, match="event 8"):
                async for stored in database.events.stream():
                    read.append(stored.sequence)  # noqa: PERF401
            assert read == [*range(1, 8)]
            assert len(await database.events.replay_all(undecodable=UndecodableEvent)) == 9

        run(url, story, maintain_projections=False)

    def test_raises_the_same_errors_when_it_opens(self, sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
        async def open_database(**arguments: Any) -> None:
            await AsyncDatabase.open(**arguments)

        with pytest.raises(SchemaOutOfDate):
            asyncio.run(open_database(url=sqlite_url, migrate=False))
        with pytest.raises(PersistenceError, match="of mysql"):
            asyncio.run(open_database(url="mysql://"))
        with pytest.raises(TypeError, match="AppConfig"):
            asyncio.run(open_database(config=str(sqlite_url)))
        monkeypatch.setattr("peon.persistence.backends.engine.find_spec", lambda name: None)
        with pytest.raises(PersistenceError, match="extra 'async'"):
            asyncio.run(open_database(url=sqlite_url))

    def test_databases_in_memory_are_separate(self) -> None:
        async def story() -> None:
            url = URL.create("sqlite", database=":memory:")
            databases = await asyncio.gather(*(AsyncDatabase.open(url=url) for _ in range(3)))
            for number, database in enumerate(databases):
                await database.events.append_all([created() for _ in range(number)])
            assert [await database.events.last_sequence() for database in databases] == [0, 1, 2]
            await asyncio.gather(*(database.close() for database in databases))

        asyncio.run(story())


class TestTasks:
    @pytest.mark.postgresql_too("the driver")
    def test_share_commits_and_get_their_own_results(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            async def append(number: int) -> list[int]:
                batch: list[OrchestrationEvent] = [created(f"{number}-{part}") for part in range(number % 3 + 1)]
                if number % 10 == 9:
                    batch.append(ProjectDeleted(project_id=uuid4()))
                stored = await database.events.append_all(batch)
                assert [s.event for s in stored] == batch
                return [s.sequence for s in stored]

            outcomes = await asyncio.gather(*(append(number) for number in range(100)), return_exceptions=True)
            failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, ProjectionError)]
            assert failed == [*range(9, 100, 10)]
            sequences = sorted(n for outcome in outcomes if not isinstance(outcome, BaseException) for n in outcome)
            assert sequences == [*range(1, len(sequences) + 1)]
            assert await database.projections.verify() == []

        run(url, story)

    def test_exactly_one_of_many_wins_each_round(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            for _ in range(10):
                last = await database.events.last_sequence()
                condition = AppendCondition(EventQuery(project_id=UUID(int=1)), after=last)
                outcomes = await asyncio.gather(
                    *(database.events.append_all([renamed(str(n))], condition=condition) for n in range(8)),
                    return_exceptions=True,
                )
                assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
                assert sum(isinstance(outcome, ConcurrencyError) for outcome in outcomes) == 7

        run(url, story, maintain_projections=False)

    def test_an_append_within_an_append_is_refused(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase) -> None:
            inner: EventStore[OrchestrationEvent] = database.events._store
            refused: list[PersistenceError] = []

            def again(*_: object) -> None:
                try:
                    store._store.append_all([renamed("inner")])
                except PersistenceError as error:
                    refused.append(error)

            store: AsyncEventStore[OrchestrationEvent] = AsyncEventStore(database.engine, on_append=again)
            await store.append_all([renamed("outer")])
            await store.close()
            assert "from inside an append" in str(refused[0])
            assert names(await database.events.replay_all()) == ["outer"]
            assert inner is not store

        run(url, story, maintain_projections=False)

    @pytest.mark.parametrize("work", rest_is_slow(LONG_WORK.values(), first=1), ids=LONG_WORK)
    def test_run_during_long_work_of_another_task(self, migrated_lasting_url: URL, work: Work) -> None:
        with Database.open(url=migrated_lasting_url) as database:
            database.events.append_all([created("x" * 200) for _ in range(COUNT)])

        async def story(database: AsyncDatabase) -> None:
            gaps: list[float] = []
            before, turns = list[int](), list[int]()

            async def tick() -> None:
                last = time.thread_time()
                while True:
                    await asyncio.sleep(0)
                    now = time.thread_time()
                    gaps.append(now - last)
                    last = now

            # Turns are counted instead of seconds: on a busy machine, any wait may take long.
            engine = database.engine.sync_engine
            listen(engine, "before_cursor_execute", lambda *_: before.append(len(gaps)))
            listen(engine, "after_cursor_execute", lambda *_: turns.append(len(gaps) - before.pop()))
            ticking = asyncio.create_task(tick())
            gc.disable()  # collecting the garbage of other tests takes long
            try:
                start = time.thread_time()
                await work(database)
                end = time.thread_time()
            finally:
                gc.enable()
            ticking.cancel()
            assert len(gaps) >= COUNT / PAUSE_ITEMS, "other tasks did not get their turn between portions of the work"
            assert max(gaps) < (end - start) / 5  # of the processor's time of this thread
            assert min(turns) > 0, "other tasks did not get a turn while the work waited for a statement"

        run(migrated_lasting_url, story)


class TestCancellation:
    @pytest.mark.parametrize("rounds", [15, pytest.param(40, marks=pytest.mark.slow)])
    def test_at_random_points_leaves_no_partial_batch(self, url: URL, migrated: None, rounds: int) -> None:
        chance = random.Random(1)

        async def story(database: AsyncDatabase) -> None:
            acknowledged: list[str] = []

            async def append(name: str, size: int) -> None:
                await database.events.append_all([created(name) for _ in range(size)])
                acknowledged.append(name)

            async def read() -> None:
                async for _ in database.events.stream():
                    pass
                await database.read_model.projects()
                await database.settings.set("a", 1)

            for attempt in range(rounds):
                tasks = [asyncio.create_task(append(f"{attempt}-{n}", chance.choice([1, 2, 30]))) for n in range(4)]
                tasks.append(asyncio.create_task(read()))
                for _ in range(chance.randrange(60)):
                    await asyncio.sleep(0 if chance.random() < 0.7 else 0.001)
                for task in chance.sample(tasks, chance.randrange(1, 6)):
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
            await database.events.append_all([created("last")])

            stored = await database.events.replay_all()
            assert [s.sequence for s in stored] == [*range(1, len(stored) + 1)]
            found = [name for name, _ in groupby(stored, key=lambda s: s.event.name)]  # type: ignore[union-attr]
            assert len(set(found)) == len(found), "a batch was torn or stored twice"
            assert {*acknowledged, "last"} <= set(found)
            assert await database.projections.verify() == []

        run(url, story)

    @pytest.mark.postgresql_too("the driver")
    def test_in_a_transaction_of_the_caller_leaves_no_partial_transaction(self, url: URL, migrated: None) -> None:
        chance = random.Random(1)

        async def story(database: AsyncDatabase) -> None:
            async def append(name: str) -> None:
                async with database.engine.begin() as connection:
                    await database.events.append_all([created(name)], connection=connection)
                    await database.settings.set(name, True, connection=connection)

            for attempt in range(60):
                tasks = [asyncio.create_task(append(f"{attempt}-{number}")) for number in range(2)]
                for _ in range(chance.randrange(40)):
                    await asyncio.sleep(0 if chance.random() < 0.7 else 0.001)
                tasks[0].cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                if database.engine.url.database == ":memory:" and any(
                    isinstance(outcome, StoreUnavailable | SQLAlchemyError) for outcome in outcomes
                ):
                    return  # SQLAlchemy reports that it closed the connection during its own BEGIN
                assert isinstance(outcomes[0], asyncio.CancelledError | None)
                assert outcomes[1] is None
            stored = names(await database.events.replay_all())
            assert sorted(stored) == sorted(await database.settings.all())
            assert {f"{attempt}-1" for attempt in range(60)} <= set(stored)

        # If SQLAlchemy closes the only connection of a database in memory, the other task waits forever.
        in_vain = AppConfig(database=DatabaseConfig(busy_timeout=2)) if url.database == ":memory:" else None
        run(url, story, maintain_projections=False, config=in_vain)

    def test_of_a_consumer_leaves_its_effects_exactly_once(self, migrated_lasting_url: URL) -> None:
        chance = random.Random(2)

        async def story(database: AsyncDatabase) -> None:
            await database.events.append_all([renamed()] * 60)
            async with database.engine.begin() as connection:
                await connection.execute(text("CREATE TABLE effects (sequence BIGINT)"))

            async def consume() -> None:
                async with database.events.durable_subscription("mailer") as subscription:
                    while subscription.position < 60:
                        stored = await anext(subscription)
                        async with database.engine.begin() as connection:
                            effect = {"sequence": stored.sequence}
                            await connection.execute(text("INSERT INTO effects VALUES (:sequence)"), effect)
                            await subscription.save_position(connection=connection)

            consuming = asyncio.create_task(consume())
            while not consuming.done():
                for _ in range(chance.randrange(60)):
                    await asyncio.sleep(0 if chance.random() < 0.5 else 0.001)
                consuming.cancel()
                (outcome,) = await asyncio.gather(consuming, return_exceptions=True)
                if outcome is None:
                    break
                assert isinstance(outcome, asyncio.CancelledError)
                consuming = asyncio.create_task(consume())
            async with database.engine.connect() as connection:
                effects = (await connection.scalars(text("SELECT sequence FROM effects ORDER BY sequence"))).all()
            assert list(effects) == [*range(1, 61)]

        run(migrated_lasting_url, story, maintain_projections=False)

    @pytest.mark.parametrize("turns", [0, 3, 10, 25])
    def test_of_all_tasks_does_not_affect_later_appends(self, migrated_lasting_url: URL, turns: int) -> None:
        async def story(database: AsyncDatabase) -> None:
            me = asyncio.current_task()
            cancelled = [asyncio.create_task(database.events.append_all([created(str(n))])) for n in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {me}:
                task.cancel()
            (stored,) = await database.events.append_all([created("after")])
            await asyncio.gather(*cancelled, return_exceptions=True)
            log = await database.events.replay_all()
            assert stored in log
            assert [s.sequence for s in log] == [*range(1, len(log) + 1)]

        run(migrated_lasting_url, story, maintain_projections=False)

    def test_of_an_open_leaks_nothing(self, migrated_lasting_url: URL) -> None:
        with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
            database.events.append_all([created(str(n)) for n in range(3_000)])

        async def story() -> None:
            for turns in range(0, 200, 20):
                opening = asyncio.create_task(AsyncDatabase.open(url=migrated_lasting_url))
                for _ in range(turns):
                    await asyncio.sleep(0.0005)
                opening.cancel()
                (outcome,) = await asyncio.gather(opening, return_exceptions=True)
                if isinstance(outcome, AsyncDatabase):
                    await outcome.close()

        asyncio.run(story())
        gc.collect()
        assert not [thread for thread in threading.enumerate() if "_connection_worker" in thread.name]

    @pytest.mark.postgresql_too("the driver")
    def test_of_an_append_that_waits_for_the_write_lock_still_stores_it(self, migrated_lasting_url: URL) -> None:
        async def story(database: AsyncDatabase) -> None:
            other = sqlalchemy.create_engine(migrated_lasting_url)
            with other.connect() as holder:
                if holder.dialect.name == "sqlite":
                    holder.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    holder.execute(text("SELECT 1 FROM append_lock FOR UPDATE"))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await database.events.append_all([created("given up")])
                waiting = asyncio.create_task(database.events.append_all([created("next")]))
                await asyncio.sleep(0)
                holder.rollback()
            other.dispose()
            await waiting
            assert names(await database.events.replay_all()) == ["given up", "next"]

        run(migrated_lasting_url, story)

    def test_by_the_end_of_the_event_loop(self, migrated_lasting_url: URL) -> None:
        codes = exit_codes(end_the_event_loop_in_the_middle, [(address(migrated_lasting_url),)])
        assert codes == [0]
        with Database.open(url=migrated_lasting_url) as database:
            stored = database.events.replay_all()
            assert len(stored) >= BATCH
            assert len(stored) % BATCH == 0
            assert database.projections.verify() == []
            database.events.append_all([created()])


# A connection that is in use while the pool is closed is closed by the garbage collector, with a warning.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_close_does_not_wait_for_later_appends(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        database = await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False)

        async def go_on() -> None:
            while True:
                await database.events.append_all([renamed()])

        going_on = [asyncio.create_task(go_on()) for _ in range(3)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE):
            await database.close()
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        await database.close()

    asyncio.run(story())
    gc.collect()


@pytest.mark.postgresql_too("the driver")
def test_appends_during_close_are_stored_completely_or_fail(migrated_lasting_url: URL) -> None:
    async def story(database: AsyncDatabase) -> None:
        async def turns(count: int) -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        async def append(name: str) -> int:
            return len(await database.events.append_all([renamed(name)] * 10))

        for attempt in range(60):
            first = asyncio.create_task(append(f"{attempt} first"))
            await turns(5)
            closing = asyncio.create_task(database.events.close())
            await turns(1)
            second = asyncio.create_task(append(f"{attempt} second"))
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            writer: Any = database.events._store._writer
            await first
            await turns(1)
            writer._serving.add_done_callback(settled.set_result)  # runs at the moment when the last append ends
            await settled
            third = asyncio.create_task(append(f"{attempt} third"))
            assert await asyncio.gather(second, third, closing) == [10, 10, None]
        found = [name for name, _ in groupby(await database.events.replay_all(), key=lambda s: s.event.name)]  # type: ignore[union-attr]
        assert len(found) == len(set(found)) == 180

    run(migrated_lasting_url, story, maintain_projections=False)


def test_a_closed_database_in_memory_says_that_it_is_gone() -> None:
    async def story() -> None:
        database = await AsyncDatabase.open(url="sqlite://")
        await database.events.append_all([created()])
        await database.close()
        with pytest.raises(StoreUnavailable, match="in memory is gone"):
            await database.events.replay_all()

    asyncio.run(story())
