"""What only a server does: commits in another order, closed connections, transactions that it rolls back."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, Connection, Engine, event, text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import (
    Database,
    EventStore,
    PersistenceError,
    StoreUnavailable,
    SubscriptionConflict,
    create_engine,
)
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.backends.retries import ATTEMPTS
from peon.persistence.orchestration.codec import orchestration_codec

PATIENCE = 30


@pytest.fixture
def database(migrated_postgresql_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        yield database


def renamed(name: str = "x") -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


def names(stored: list[Any]) -> list[str]:
    return [s.event.name for s in stored]


@contextmanager
def asked(url: URL) -> Iterator[Connection]:
    """A separate connection, to look at the server and to act on it."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def end_connections_of(url: URL, state: str = "%") -> int:
    """Ends all connections with the `application_name` of the address; returns their number."""
    with asked(url) as connection:
        rows = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE application_name = :name AND state LIKE :state AND pid <> pg_backend_pid()"
            ),
            {"name": url.query["application_name"], "state": state},
        ).all()
    return len(rows)


@pytest.fixture
def named_url(migrated_postgresql_url: URL, database: Database) -> URL:
    """Returns the database's address with an `application_name` that no other test uses."""
    name = str(migrated_postgresql_url.query["options"])[-40:]
    return migrated_postgresql_url.update_query_dict({"application_name": name})


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.002)


def waiting_for_a_lock(connection: Connection, name: str) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND wait_event_type = 'Lock'"
    return int(connection.scalar(text(query), {"name": name}) or 0)


class TestOrder:
    """After a reader has seen sequence n, no new event appears below n."""

    def test_appends_wait_for_a_transaction_that_has_appended(self, database: Database, named_url: URL) -> None:
        seen: list[int] = []
        done = threading.Event()

        def tail(reader: Database) -> None:
            while not done.is_set() or seen[-1:] != [reader.events.last_sequence()]:
                seen.extend(s.sequence for s in reader.events.stream(after=seen[-1] if seen else 0))

        with (
            Database.open(url=named_url, maintain_projections=False) as other,
            Database.open(url=named_url, maintain_projections=False) as reader,
            ThreadPoolExecutor(5) as pool,
            asked(named_url.update_query_dict({"application_name": "watch"})) as watch,
        ):
            tailing = pool.submit(tail, reader)
            with database.engine.begin() as connection:
                held = database.events.append_all([renamed("held")], connection=connection)
                appends = [pool.submit(store.events.append_all, [renamed("other")]) for store in (other, database)]
                wait_until(lambda: waiting_for_a_lock(watch, str(named_url.query["application_name"])))
                assert reader.events.last_sequence() == 0
                assert not any(append.done() for append in appends)
            others = [append.result(PATIENCE)[0].sequence for append in appends]
            done.set()
            tailing.result(PATIENCE)

        assert held[0].sequence == 1
        assert sorted(others) == [2, 3]
        assert seen == [1, 2, 3]

    def test_an_append_that_is_rolled_back_leaves_no_gap(self, database: Database) -> None:
        with database.engine.connect() as connection:
            database.events.append_all([renamed("gone")], connection=connection)
            connection.rollback()

        assert database.events.append_all([renamed()])[0].sequence == 1

    def test_the_error_for_a_transaction_with_an_old_snapshot_names_the_remedy(self, database: Database) -> None:
        with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.execute(text("SELECT count(*) FROM events"))
            before = database.events.append_all([renamed("first")])
            with pytest.raises(StoreUnavailable, match=r"repeat the transaction, or begin it with .* READ COMMITTED"):
                database.events.append_all([renamed("second")], connection=connection)

        assert database.events.replay_all() == before

    @pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
    def test_the_order_holds_for_every_default_isolation_level(
        self, database: Database, named_url: URL, isolation: str
    ) -> None:
        options = rf"{named_url.query['options']} -cdefault_transaction_isolation={isolation}".replace(" r", r"\ r")
        url = named_url.update_query_dict({"options": options})
        # The application's own engine lacks the isolation level that create_engine sets.
        engines = [sqlalchemy.create_engine(url) for _ in range(4)]
        stores = [EventStore(engine) for engine in engines]

        with ThreadPoolExecutor(4) as pool:
            for appended in [pool.submit(append_many, store, 25) for store in stores]:
                appended.result(PATIENCE)

        assert [s.sequence for s in database.events.stream()] == [*range(1, 101)]
        for store, engine in zip(stores, engines, strict=True):
            store.close()
            engine.dispose()


def append_many(store: EventStore[Any], count: int) -> None:
    for _ in range(count):
        store.append_all([renamed()])


@pytest.mark.slow
@pytest.mark.alone
def test_sixteen_writers_and_four_readers_see_one_order(database: Database, migrated_postgresql_url: URL) -> None:
    writers, readers, events = 16, 4, 20_000
    each = events // writers

    def write(number: int) -> list[tuple[int, str]]:
        acknowledged = []
        with Database.open(url=migrated_postgresql_url, maintain_projections=False) as store:
            for turn in range(0, each, 5):
                batch = [renamed(f"{number}-{turn + part}") for part in range(5)]
                acknowledged += [(s.sequence, s.event.name) for s in store.events.append_all(batch)]
        return acknowledged

    def tail() -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = []
        deadline = time.monotonic() + 10 * PATIENCE
        with Database.open(url=migrated_postgresql_url, maintain_projections=False) as store:
            while len(seen) < events and time.monotonic() < deadline:
                after = seen[-1][0] if seen else 0
                seen += [(s.sequence, s.event.name) for s in store.events.stream(after=after)]  # type: ignore[union-attr]
        return seen

    with ThreadPoolExecutor(writers + readers) as pool:
        tails = [pool.submit(tail) for _ in range(readers)]
        written = [pool.submit(write, number) for number in range(writers)]
        acknowledged = sorted(pair for future in written for pair in future.result())
        assert [future.result() == acknowledged for future in tails] == [True] * readers

    assert [sequence for sequence, _ in acknowledged] == [*range(1, events + 1)]
    for number in range(writers):
        mine = [name for _, name in acknowledged if name.startswith(f"{number}-")]
        assert mine == [f"{number}-{turn}" for turn in range(each)]


class TestLostConnections:
    @pytest.fixture
    def store(self, named_url: URL) -> Iterator[Database]:
        with Database.open(url=named_url) as store:
            yield store

    def test_a_lost_idle_connection_is_replaced_silently(self, store: Database, named_url: URL) -> None:
        acknowledged = store.events.append_all([created("a")])
        uses: list[Callable[[], object]] = [
            store.events.replay_all,
            lambda: acknowledged.extend(store.events.append_all([created("b")])),
            store.read_model.projects,
            lambda: store.settings.set("theme", "dark"),
            store.projections.verify,
            lambda: acknowledged.extend(store.events.append_all([created("c"), created("d")])),
        ]
        for use in uses:
            assert end_connections_of(named_url) > 0
            use()

        assert store.events.replay_all() == acknowledged
        assert store.projections.verify() == []

    def test_a_connection_lost_during_an_append_is_replaced(self, store: Database, named_url: URL) -> None:
        store.events.append_all([created("a")])
        ended: list[int] = []

        def end(connection: Connection, stored: object) -> None:
            if not ended:
                ended.append(end_connections_of(named_url, "idle in transaction"))
                connection.execute(text("SELECT 1"))

        other: EventStore[Any] = EventStore(store.engine, orchestration_codec, on_append=end)
        (b,) = other.append_all([created("b")])
        other.close()

        assert ended == [1]
        assert b.sequence == 2
        assert names(store.events.replay_all()) == ["a", "b"]

    def test_a_connection_lost_in_the_transaction_of_the_caller_is_reported(
        self, store: Database, named_url: URL
    ) -> None:
        with store.engine.connect() as connection:
            store.events.append_all([created("a")], connection=connection)
            end_connections_of(named_url, "idle in transaction")
            with pytest.raises(StoreUnavailable):
                store.events.append_all([created("b")], connection=connection)
            uses: list[Callable[[], object]] = [
                lambda: store.events.append_all([created("b")], connection=connection),
                lambda: store.settings.set("theme", "dark", connection=connection),
            ]
            for use in uses:
                with pytest.raises(StoreUnavailable, match="lost during a transaction: roll the transaction back"):
                    use()
            connection.rollback()
            assert store.events.append_all([created("b")], connection=connection)[0].sequence == 1

        assert store.events.replay_all() == []
        assert store.events.append_all([created("c")])[0].sequence == 1

    def test_a_commit_without_an_answer_says_that_the_outcome_is_unknown(self, store: Database, named_url: URL) -> None:
        store.events.append_all([created("a")])
        event.listen(store.engine, "commit", lambda _: end_connections_of(named_url, "idle in transaction"), once=True)

        with pytest.raises(StoreUnavailable, match="lost during the commit, which may have taken place"):
            store.events.append_all([created("b")])

        store.events.append_all([created("c")])
        assert names(store.events.replay_all()) == ["a", "c"]
        assert [s.sequence for s in store.events.stream()] == [1, 2]

    @pytest.mark.parametrize("took_place", [True, False])
    def test_a_subscription_continues_after_a_commit_without_an_answer(
        self, store: Database, named_url: URL, *, took_place: bool
    ) -> None:
        store.events.append_all([created(name) for name in "abcd"])
        with store.events.durable_subscription("mailer") as mailer:
            for _ in range(2):  # then there is more than one possible position
                next(mailer)
                with losing_the_answer(store.engine, named_url, took_place=took_place):
                    mailer.save_position()
            mailer.save_position()
            assert saved_sequence(store) == 2
            next(mailer)
            with losing_the_answer(store.engine, named_url, took_place=took_place):
                mailer.save_position()
            assert saved_sequence(store) == (3 if took_place else 2)
            next(mailer)
            mailer.save_position()
            assert saved_sequence(store) == 4

            with store.engine.begin() as connection:  # like another consumer
                connection.execute(text("UPDATE subscription_positions SET saved_at = ''"))
            with pytest.raises(SubscriptionConflict):
                mailer.save_position()

    def test_threads_lose_and_repeat_nothing_while_connections_are_lost(self, store: Database, named_url: URL) -> None:
        stop = threading.Event()

        def disturb() -> int:
            ended = 0
            while not stop.is_set():
                ended += end_connections_of(named_url)
            return ended

        def append(thread: int) -> list[tuple[str, bool]]:
            outcomes = []
            for number in range(40):
                name = f"{thread}-{number}"
                try:
                    store.events.append_all([created(name)])
                    outcomes.append((name, True))
                except StoreUnavailable:
                    outcomes.append((name, False))
            return outcomes

        with ThreadPoolExecutor(5) as pool:
            disturbing = pool.submit(disturb)
            outcomes = [pair for future in [pool.submit(append, n) for n in range(4)] for pair in future.result()]
            stop.set()
            assert disturbing.result() > 0

        logged = names(store.events.replay_all())
        assert len(set(logged)) == len(logged)
        assert {name for name, stored in outcomes if stored} <= set(logged)
        assert [s.sequence for s in store.events.stream()] == [*range(1, len(logged) + 1)]
        assert store.projections.verify() == []


@contextmanager
def losing_the_answer(engine: Engine, url: URL, *, took_place: bool) -> Iterator[None]:
    """Ends the connection at its COMMIT, before or after the server has committed."""

    def lose(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if took_place:
            driver.commit()
        assert end_connections_of(url) > 0
        connection.exec_driver_sql("SELECT 1")

    event.listen(engine, "commit", lose, once=True)
    with pytest.raises(StoreUnavailable, match="lost during the commit, which may have taken place"):
        yield


def saved_sequence(database: Database) -> int:
    with database.engine.connect() as connection:
        return int(connection.scalars(text("SELECT sequence FROM subscription_positions")).one())


def created(name: str) -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name=name, path="/")


class TestTransactionsThatTheServerRollsBack:
    @pytest.fixture
    def engine(self, database: Database) -> Iterator[Engine]:
        engine = create_engine(database.engine.url)
        yield engine
        engine.dispose()

    @pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
    def test_a_transaction_that_the_server_rolled_back_is_repeated(self, engine: Engine, sqlstate: str) -> None:
        calls = 0

        def fail_twice(connection: Connection, stored: object) -> None:
            nonlocal calls
            calls += 1
            if calls <= 2:
                connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'undone' USING ERRCODE = '{sqlstate}'; END $$"))

        store: EventStore[Any] = EventStore(engine, orchestration_codec, on_append=fail_twice)
        stored = store.append_all([renamed("a"), renamed("b")])

        assert calls == 3
        assert [s.sequence for s in stored] == [1, 2]
        assert store.replay_all() == stored
        store.close()

    def test_a_transaction_is_repeated_a_limited_number_of_times(self, engine: Engine) -> None:
        calls = 0

        def fail(connection: Connection, stored: object) -> None:
            nonlocal calls
            calls += 1
            connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'undone' USING ERRCODE = '40001'; END $$"))

        store: EventStore[Any] = EventStore(engine, orchestration_codec, on_append=fail)
        with pytest.raises(StoreUnavailable, match="undone"):
            store.append_all([renamed()])

        assert calls == ATTEMPTS
        assert store.replay_all() == []
        store.close()

    def test_an_append_succeeds_after_a_real_deadlock(self, engine: Engine) -> None:
        """One transaction holds a setting and waits for the log; the other holds the log and waits for the setting."""
        asks = threading.Event()

        def touch_setting(connection: Connection, stored: object) -> None:
            asks.set()
            connection.execute(text("UPDATE settings SET value = '2' WHERE key = 'k'"))

        store: EventStore[Any] = EventStore(engine, orchestration_codec, on_append=touch_setting)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO settings VALUES ('k', '0')"))
        outcomes: list[str] = []
        with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
            connection.execute(text("SET deadlock_timeout = '10s'"))  # so that the server rolls back the append
            connection.execute(text("UPDATE settings SET value = '1' WHERE key = 'k'"))
            appended = pool.submit(store.append_all, [renamed("appended")])
            assert asks.wait(PATIENCE)
            EventStore(engine).append_all([renamed("mine")], connection=connection)
            connection.commit()
            outcomes += names(appended.result(PATIENCE))

        assert outcomes == ["appended"]
        assert names(store.replay_all()) == ["mine", "appended"]
        store.close()

    def test_a_hook_that_suppresses_an_error_cannot_lose_an_append_silently(self, engine: Engine) -> None:
        def swallow(connection: Connection, stored: object) -> None:
            with suppress(sqlalchemy.exc.ProgrammingError):
                connection.execute(text("SELECT * FROM no_such_table"))

        store: EventStore[Any] = EventStore(engine, orchestration_codec, on_append=swallow)
        with pytest.raises(PersistenceError, match="Use a savepoint"):
            store.append_all([renamed()])

        assert store.replay_all() == []
        store.close()


def commit_a_position(database: Database) -> None:
    with database.events.durable_subscription("mailer") as mailer:
        next(mailer)
        mailer.save_position()


OWN_TRANSACTIONS: dict[str, Callable[[Database], object]] = {
    "a setting": lambda database: database.settings.set("theme", "dark"),
    "rebuilding": lambda database: database.projections.rebuild(),
    "a setting that is removed": lambda database: database.settings.delete("theme"),
    "a new subscription": lambda database: database.events.durable_subscription("new"),
    "a position": commit_a_position,
    "catching up": lambda database: database.projections.catch_up(),
}


@pytest.mark.parametrize("use", rest_is_slow(OWN_TRANSACTIONS.values(), first=2), ids=OWN_TRANSACTIONS)
class TestOwnTransactions:
    """The package's own transactions outside the log."""

    @pytest.fixture
    def store(self, named_url: URL, database: Database) -> Iterator[Database]:
        with Database.open(url=named_url) as store:
            store.events.durable_subscription("mailer").close()
            database.events.append_all([created(name) for name in "abc"])  # stores events only, without projections
            yield store

    @pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
    def test_a_transaction_that_the_server_rolled_back_is_repeated(
        self, store: Database, use: Callable[[Database], object], sqlstate: str
    ) -> None:
        with commits_rolled_back(store.engine, sqlstate, times=2) as undone:
            use(store)

        assert len(undone) == 2
        store.projections.catch_up()
        assert store.projections.verify() == []

    def test_a_transaction_is_repeated_a_limited_number_of_times(
        self, store: Database, use: Callable[[Database], object]
    ) -> None:
        with commits_rolled_back(store.engine, "40001") as undone, pytest.raises(StoreUnavailable, match="undone"):
            use(store)

        assert len(undone) == ATTEMPTS
        use(store)

    @pytest.mark.parametrize("took_place", [True, False])
    def test_a_commit_without_an_answer_says_that_the_outcome_is_unknown(
        self, store: Database, named_url: URL, use: Callable[[Database], object], *, took_place: bool
    ) -> None:
        with losing_the_answer(store.engine, named_url, took_place=took_place):
            use(store)

        use(store)
        store.projections.catch_up()
        assert store.projections.verify() == []


@contextmanager
def commits_rolled_back(engine: Engine, sqlstate: str, times: int | None = None) -> Iterator[list[Connection]]:
    """Makes the server roll back this many transactions at their COMMIT, or all."""
    undone: list[Connection] = []

    def undo(connection: Connection) -> None:
        if times is None or len(undone) < times:
            undone.append(connection)
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'undone' USING ERRCODE = '{sqlstate}'; END $$")

    event.listen(engine, "commit", undo)
    yield undone
    event.remove(engine, "commit", undo)


def test_threads_set_settings_with_every_default_isolation_level_of_the_engine(migrated_postgresql_url: URL) -> None:
    engine = sqlalchemy.create_engine(migrated_postgresql_url, isolation_level="SERIALIZABLE")
    database = Database(engine)

    def set_many(thread: int) -> None:
        for number in range(25):
            database.settings.set("last", [thread, number])
            database.settings.set(f"of {thread}", number)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(set_many, thread) for thread in range(4)]:
            done.result(PATIENCE)

    assert [database.settings.get(f"of {thread}") for thread in range(4)] == [24] * 4
    database.projections.rebuild()
    assert database.projections.verify() == []
    engine.dispose()


def test_an_event_loop_runs_while_a_transaction_waits_to_be_repeated(
    migrated_postgresql_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(seconds: float) -> None:
        raise AssertionError("the event loop is blocked")

    async def set_one() -> None:
        async with await AsyncDatabase.open(url=migrated_postgresql_url) as database:
            monkeypatch.setattr(time, "sleep", block)
            with commits_rolled_back(database.engine.sync_engine, "40001", times=2) as undone:
                await database.settings.set("theme", "dark")
            assert len(undone) == 2
            assert await database.settings.get("theme") == "dark"

    asyncio.run(set_one())


def test_a_stream_holds_no_transaction_open(database: Database, named_url: URL) -> None:
    with Database.open(url=named_url, maintain_projections=False) as store:
        store.events.append_all([renamed(str(n)) for n in range(2_500)])
        stream = store.events.stream()
        next(stream)
        with asked(named_url.update_query_dict({"application_name": "watch"})) as watch:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND state LIKE '%transaction%'"
            )
            assert watch.scalar(text(query), {"name": named_url.query["application_name"]}) == 0
        end_connections_of(named_url)
        assert len(list(stream)) == 2_499
