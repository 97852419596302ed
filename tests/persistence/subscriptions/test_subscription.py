"""Subscriptions miss and repeat nothing, wake, end, and survive lost connections."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from statistics import median
from typing import Any
from uuid import UUID

import pytest
from helpers.processes import context
from helpers.stalling_network import Network
from helpers.subscription_processes import append_names
from sqlalchemy import URL, event, insert, text

from peon import UndecodableEvent
from peon.orchestration import OrchestrationEvent, ProjectRenamed, ThreadSelected
from peon.persistence import (
    Database,
    EventDecodeError,
    EventQuery,
    StoredEvent,
    StoreUnavailable,
    Subscription,
    create_engine,
)
from peon.persistence.backends import postgresql_watching, sqlite
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log import pages
from peon.persistence.log.pages import LogPages
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.runtime.instrumentation import Telemetry
from peon.persistence.schema import events as log
from peon.persistence.subscriptions import notifier, watcher
from peon.persistence.subscriptions.tail import Tail

pytestmark = pytest.mark.postgresql_too("notifications of the server")

PATIENCE = 30


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def renamed(name: str = "x", project: int = 1) -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=project), name=name)


def take(subscription: Subscription[Any], count: int) -> list[StoredEvent[Any]]:
    return [next(subscription) for _ in range(count)]


def watchers() -> int:
    return sum(thread.name == "peon-watcher" for thread in threading.enumerate())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_watcher_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: watchers() == 0)


@pytest.fixture
def consumers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def lasting(migrated_lasting_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        yield database


def until_waiting(database: Database) -> None:
    """Returns as soon as a subscription of the database has found nothing new and waits."""
    wait_for(lambda: bool(database.events._notifier._wakes))


class TestDelivery:
    def test_yields_stored_events_and_then_new_ones(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        stored = log_alone.events.append_all([renamed("a"), renamed("b")])
        with log_alone.events.subscribe() as subscription:
            assert take(subscription, 2) == stored
            coming = consumers.submit(next, subscription)
            until_waiting(log_alone)
            stored += log_alone.events.append_all([renamed("c")])

            assert coming.result(PATIENCE) == stored[2]
            assert subscription.position == 3

    def test_begins_after_a_sequence(self, log_alone: Database) -> None:
        stored = log_alone.events.append_all([renamed("a"), renamed("b")])
        with log_alone.events.subscribe(after=1) as subscription:
            assert subscription.position == 1
            assert next(subscription) == stored[1]

    def test_misses_and_repeats_nothing_during_appends(
        self, log_alone: Database, consumers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages, "PAGE_EVENTS", 3)
        events = log_alone.events

        def consume(after: int) -> list[int]:
            wait_for(lambda: events.last_sequence() >= after)
            with events.subscribe(after=after) as subscription:
                return [stored.sequence for stored in take(subscription, 120 - after)]

        def produce(number: int) -> None:
            for _ in range(20):
                events.append_all([renamed(str(number))] * (1 + number))

        consumed = [consumers.submit(consume, after) for after in (0, 0, 17, 60)]
        produced = [consumers.submit(produce, number) for number in range(3)]
        for future in produced:
            future.result(PATIENCE)
        assert [future.result(PATIENCE) for future in consumed] == [
            [*range(after + 1, 121)] for after in (0, 0, 17, 60)
        ]

    @pytest.mark.parametrize(
        "filters", [{"event_types": ["ThreadSelected"]}, {"query": EventQuery(thread_id=UUID(int=7))}]
    )
    def test_yields_only_matching_events(
        self, log_alone: Database, consumers: ThreadPoolExecutor, filters: dict[str, Any]
    ) -> None:
        wanted = ThreadSelected(thread_id=UUID(int=7))
        batch: list[OrchestrationEvent] = [renamed(), wanted, renamed()]
        log_alone.events.append_all(batch)
        with log_alone.events.subscribe(**filters) as subscription:
            assert next(subscription).sequence == 2
            coming = consumers.submit(next, subscription)
            until_waiting(log_alone)
            log_alone.events.append_all([renamed()])
            log_alone.events.append_all(batch)
            assert coming.result(PATIENCE).sequence == 6
            assert subscription.position == 6

    def test_does_not_read_skipped_events_again(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed()] * 5)
        pages = LogPages(log_alone.engine, DriverErrors(log_alone.engine), ["ThreadSelected"])
        asked: list[int] = []

        def read(after: int, limit: int | None) -> Iterator[list[Any]]:
            asked.append(after)
            return pages.read(after, limit)

        tail: Tail[Any] = Tail(
            read,
            lambda _: log_alone.events.last_sequence(),
            orchestration_codec,
            0,
            Telemetry(),
            leaves_out=True,
            keep=False,
        )
        assert tail.next() is None
        log_alone.events.append_all([ThreadSelected(thread_id=UUID(int=7))])
        assert tail.next() is not None
        assert tail.next() is None
        assert tail.next() is None
        assert asked == [0, 5, 6, 6]


class TestWaking:
    def test_wakes_at_once_after_an_append_in_the_same_process(
        self, log_alone: Database, consumers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Blind:
            def __init__(self, *_: object) -> None: ...
            def stop(self) -> None: ...
            def wait(self) -> None: ...

        monkeypatch.setattr(notifier, "Watcher", Blind)
        with log_alone.events.subscribe() as subscription:
            for sequence in range(1, 20):
                coming = consumers.submit(next, subscription)
                until_waiting(log_alone)
                log_alone.events.append_all([renamed()])
                assert coming.result(PATIENCE).sequence == sequence

    def test_wakes_after_an_append_by_another_database_object(
        self,
        lasting: Database,
        migrated_lasting_url: URL,
        consumers: ThreadPoolExecutor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sqlite, "POLL_SECONDS", PATIENCE * 2)
        with (
            Database.open(url=migrated_lasting_url, maintain_projections=False) as other,
            lasting.events.subscribe() as subscription,
        ):
            coming = consumers.submit(next, subscription)
            until_waiting(lasting)
            other.events.append_all([renamed()])
            assert coming.result(PATIENCE).sequence == 1

    def test_wakes_after_an_append_in_a_transaction_of_the_caller(
        self, log_alone: Database, consumers: ThreadPoolExecutor
    ) -> None:
        with log_alone.events.subscribe() as subscription:
            coming = consumers.submit(next, subscription)
            until_waiting(log_alone)
            with log_alone.engine.begin() as connection:
                log_alone.events.append_all([renamed()], connection=connection)
            assert coming.result(PATIENCE).sequence == 1

    def test_wakes_after_an_append_by_another_process(
        self, lasting: Database, migrated_lasting_url: URL, consumers: ThreadPoolExecutor
    ) -> None:
        names = [str(number) for number in range(50)]

        def take_all(subscription: Subscription[Any]) -> list[tuple[str, float]]:
            taken = ((stored, datetime.now(UTC)) for stored in islice(subscription, len(names)))
            return [(stored.event.name, (now - stored.stored_at).total_seconds()) for stored, now in taken]

        with lasting.events.subscribe() as subscription:
            coming = consumers.submit(take_all, subscription)
            until_waiting(lasting)
            process = context.Process(target=append_names, args=(address(migrated_lasting_url), names))
            process.start()
            delivered = coming.result(PATIENCE)
            process.join()
        assert [name for name, _ in delivered] == names
        assert median(seconds for _, seconds in delivered) < 0.25  # 0.025 on an idle machine

    def test_a_forked_child_has_its_own_subscriptions(self, lasting: Database, consumers: ThreadPoolExecutor) -> None:
        with lasting.events.subscribe() as subscription:
            lasting.events.append_all([renamed()])
            take(subscription, 1)
            coming = consumers.submit(next, subscription)
            until_waiting(lasting)
            lasting.events.append_all([renamed()])
            assert coming.result(PATIENCE).sequence == 2
            child = os.fork()
            if not child:
                failed = True
                try:
                    thread = threading.Thread(target=lambda: lasting.events.append_all([renamed()] * 2))
                    thread.start()
                    failed = [stored.sequence for stored in take(subscription, 2)] != [3, 4]
                    thread.join()
                finally:
                    os._exit(failed)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert [stored.sequence for stored in take(subscription, 2)] == [3, 4]


class TestEnding:
    def ended(self, consuming: Future[list[Any]]) -> None:
        assert consuming.result(PATIENCE) == []

    def test_ends_when_another_thread_closes_it(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        subscription = log_alone.events.subscribe()
        consuming = consumers.submit(list, subscription)
        until_waiting(log_alone)
        subscription.close()
        self.ended(consuming)
        assert next(subscription, None) is None

    def test_ends_when_its_stop_event_is_set(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        end = threading.Event()
        consuming = consumers.submit(list, log_alone.events.subscribe(stop=end))
        until_waiting(log_alone)
        end.set()
        self.ended(consuming)

    def test_the_stop_event_is_checked_without_the_database(
        self, log_alone: Database, consumers: ThreadPoolExecutor
    ) -> None:
        looks = threading.Semaphore(0)

        class End:
            def is_set(self) -> bool:
                looks.release()
                return over.is_set()

        over = threading.Event()
        query = EventQuery(project_id=UUID(int=1))
        consuming = consumers.submit(list, log_alone.events.subscribe(stop=End(), query=query))
        until_waiting(log_alone)
        uses: list[object] = []
        for look in range(20):
            assert looks.acquire(timeout=PATIENCE)
            if look == 9:  # by now, the reads that were in progress have ended
                event.listen(log_alone.engine, "checkout", lambda *use: uses.append(use))
        over.set()
        self.ended(consuming)
        assert uses == []

    def test_ends_when_the_listening_connection_no_longer_answers(
        self, migrated_postgresql_url: URL, consumers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgresql_watching, "SILENCE_SECONDS", 0.2)
        with Network(migrated_postgresql_url) as network:
            database = Database.open(url=network.url, maintain_projections=False, migrate=False)
            reads = threading.Semaphore(0)
            event.listen(database.engine, "checkin", lambda *_: reads.release())
            consuming = consumers.submit(list, database.events.subscribe())
            for _ in range(5):  # before and after LISTEN, and when the watcher has received nothing
                assert reads.acquire(timeout=PATIENCE)
            network.freeze_listeners()
            wait_for(lambda: network.withheld > 0)  # the watcher has sent its query
            consumers.submit(database.events.close).result(PATIENCE / 3)
            self.ended(consuming)
        wait_for(lambda: watchers() == 0)
        database.engine.dispose()

    def test_can_be_closed_in_a_child_that_was_forked_during_a_read(
        self, lasting: Database, consumers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads, forked = threading.Event(), threading.Event()
        read = LogPages.read

        def read_slowly(*arguments: Any) -> Iterator[Any]:
            reads.set()
            assert forked.wait(PATIENCE)
            return read(*arguments)

        monkeypatch.setattr(LogPages, "read", read_slowly)
        subscription = lasting.events.subscribe()
        consuming = consumers.submit(next, subscription)
        assert reads.wait(PATIENCE)
        child = os.fork()
        if not child:
            forked.set()
            signal.alarm(20)  # ends the child if it hangs
            lasting.close()
            os._exit(0)
        forked.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lasting.events.append_all([renamed()])
        assert consuming.result(PATIENCE).sequence == 1
        subscription.close()

    def test_can_be_closed_with_events_left(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed()] * 3)
        with log_alone.events.subscribe() as subscription:
            for stored in subscription:
                if stored.sequence == 2:
                    subscription.close()
        assert subscription.position == 2

    def test_ends_when_the_database_is_closed(self, log_alone: Database, consumers: ThreadPoolExecutor) -> None:
        consuming = [consumers.submit(list, log_alone.events.subscribe()) for _ in range(3)]
        until_waiting(log_alone)
        log_alone.close()
        for future in consuming:
            self.ended(future)

    def test_ends_when_it_is_garbage_collected(self, lasting: Database, consumers: ThreadPoolExecutor) -> None:
        lasting.events.append_all([renamed()])

        def consume_one() -> None:
            for _ in lasting.events.subscribe(after=1):
                break

        consuming = consumers.submit(consume_one)
        until_waiting(lasting)
        wait_for(lambda: watchers() == 1)
        lasting.events.append_all([renamed()])
        consuming.result(PATIENCE)
        wait_for(lambda: watchers() == 0)

    def test_closing_does_not_wait_for_a_forked_child(self, lasting: Database, consumers: ThreadPoolExecutor) -> None:
        consuming = consumers.submit(list, lasting.events.subscribe())
        until_waiting(lasting)
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            os.close(sender)
            os.read(receiver, 1)
            os._exit(0)
        closing = consumers.submit(lasting.close)
        try:
            closing.result(PATIENCE)
        finally:
            os.close(sender)
            os.waitpid(child, 0)
            os.close(receiver)
        self.ended(consuming)

    def test_closing_the_last_subscription_ends_the_watcher(
        self, lasting: Database, consumers: ThreadPoolExecutor
    ) -> None:
        first, second = lasting.events.subscribe(), lasting.events.subscribe()
        consuming = [consumers.submit(list, subscription) for subscription in (first, second)]
        wait_for(lambda: len(lasting.events._notifier._wakes) == 2)
        first.close()
        wait_for(lambda: watchers() == 1)
        second.close()
        wait_for(lambda: watchers() == 0)
        for future in consuming:
            self.ended(future)


class TestConsumers:
    def test_a_slow_consumer_holds_no_connection(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed()] * 3)
        log_alone.events.close()
        with log_alone.events.subscribe() as subscription:
            next(subscription)
            assert log_alone.engine.pool.checkedout() == 0
            log_alone.events.append_all([renamed()])
            assert [stored.sequence for stored in take(subscription, 3)] == [2, 3, 4]

    def test_a_consumer_may_append(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed("0")])
        with log_alone.events.subscribe() as subscription:
            for stored in subscription:
                if stored.sequence == 10:
                    break
                log_alone.events.append_all([renamed(str(stored.sequence))])
        assert [stored.event.name for stored in log_alone.events.stream()] == [str(n) for n in range(10)]


class TestErrors:
    def test_an_undecodable_event_is_an_error(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed()])
        with log_alone.engine.begin() as connection:
            row = {"sequence": 2, "event_type": "Unheard", "payload": "{}", "stored_at": "2026-01-01T00:00:00.000000Z"}
            connection.execute(insert(log).values(row))
        log_alone.events.append_all([renamed()])

        with log_alone.events.subscribe() as subscription:
            assert next(subscription).sequence == 1
            for _ in range(2):  # it does not skip the event
                with pytest.raises(EventDecodeError, match="event 2"):
                    next(subscription)
            assert subscription.position == 1
        with log_alone.events.subscribe(undecodable=UndecodableEvent) as keeping:
            assert [stored.sequence for stored in take(keeping, 3)] == [1, 2, 3]

    def test_continues_after_an_error(self, log_alone: Database) -> None:
        log_alone.events.append_all([renamed()])
        with log_alone.events.subscribe() as subscription:
            next(subscription)
            log_alone.events.append_all([renamed()])
            with log_alone.engine.begin() as connection:
                connection.execute(text("ALTER TABLE events RENAME TO elsewhere"))
            with pytest.raises(StoreUnavailable):
                next(subscription)
            with log_alone.engine.begin() as connection:
                connection.execute(text("ALTER TABLE elsewhere RENAME TO events"))
            assert next(subscription).sequence == 2

    def test_a_lost_watcher_is_replaced(
        self, migrated_postgresql_url: URL, consumers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watcher, "RECONNECT_SECONDS", 0.01)
        name = str(migrated_postgresql_url.query["options"])[-40:]
        url = migrated_postgresql_url.update_query_dict({"application_name": name})
        with (
            Database.open(url=url, maintain_projections=False) as database,
            database.events.subscribe() as subscription,
        ):
            coming = consumers.submit(next, subscription)
            until_waiting(database)
            # Each look in a transaction of its own: PostgreSQL shows one state of its sessions per transaction.
            engine = create_engine(migrated_postgresql_url).execution_options(isolation_level="AUTOCOMMIT")
            # Not the pool's connections: the one that is terminated while it reads would end the subscription.
            ended = (
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE application_name = :name AND query = :last"
            )
            watcher_of_name = {"name": name, "last": postgresql_watching.SCHEMA_OF_LOG}
            with engine.connect() as connection:
                deadline = time.monotonic() + PATIENCE
                while not connection.execute(text(ended), watcher_of_name).all():  # it has yet to begin
                    assert time.monotonic() < deadline
            engine.dispose()
            append_names(address(migrated_postgresql_url), ["a"])
            assert coming.result(PATIENCE).sequence == 1
            # This process does not announce the second append either: only the new watcher can notice it.
            coming = consumers.submit(next, subscription)
            context.Process(target=append_names, args=(address(migrated_postgresql_url), ["b"])).start()
            assert coming.result(PATIENCE).sequence == 2

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"after": -1}, ValueError, "after is a number from 0 on"),
            ({"undecodable": "skip"}, ValueError, "undecodable is"),
            ({"event_types": "ProjectRenamed"}, TypeError, "event_types takes a list"),
            ({"event_types": ["ProjectRenamed"], "query": EventQuery()}, ValueError, "name the types in the query"),
            ({"event_types": ["ProjectRenamd"]}, ValueError, "did you mean 'ProjectRenamed'"),
            ({"query": EventQuery(event_types=["ProjectRenamd"])}, ValueError, "did you mean 'ProjectRenamed'"),
            ({"query": EventQuery(tags={"colour": "red"})}, ValueError, "colour is not a tag"),
            ({"stop": 5}, TypeError, "stop is an event that is set"),
            ({"after": "1"}, TypeError, "after is a number"),
        ],
    )
    def test_bad_arguments_are_refused(
        self, log_alone: Database, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            log_alone.events.subscribe(**arguments)
        with pytest.raises(error, match=message):
            log_alone.events.durable_subscription("mailer", **arguments)
