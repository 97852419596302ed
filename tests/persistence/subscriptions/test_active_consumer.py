"""One consumer of a name is active at a time; another one waits, and resumes where the active one saved."""

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.processes import context
from helpers.subscription_processes import CONSUMER, deliver, hold_until_killed
from sqlalchemy import URL, text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, DurableSubscription, StoreUnavailable, create_engine
from peon.persistence.backends import postgresql_consumer_lock

pytestmark = pytest.mark.postgresql_too("the lock of the consumer")

PATIENCE = 30

TAKE_OVER_SECONDS = 2
"""The documentation promises a tenth of a second; this leaves room for a busy machine."""


@pytest.fixture
def database(log_alone: Database) -> Database:
    log_alone.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(5)])
    return log_alone


@pytest.fixture
def consumers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def active(database: Database) -> Iterator[DurableSubscription[Any]]:
    with database.events.durable_subscription(CONSUMER) as subscription:
        next(subscription)
        subscription.save_position()
        yield subscription


def waits(subscription: DurableSubscription[Any]) -> bool:
    return next(subscription.batches(timeout=0.3)) == []


def test_the_second_consumer_waits_and_resumes_where_the_first_saved(
    database: Database, active: DurableSubscription[Any], consumers: ThreadPoolExecutor
) -> None:
    with database.events.durable_subscription(CONSUMER) as second:
        coming = consumers.submit(next, second)
        assert next(active).sequence == 2
        active.save_position()
        assert next(active).sequence == 3  # not saved
        assert not coming.done()
        active.close()
        assert coming.result(TAKE_OVER_SECONDS).sequence == 3
        second.save_position()
        assert second.position == 3


def test_other_names_are_not_affected(database: Database, active: DurableSubscription[Any]) -> None:
    with database.events.durable_subscription("a/b " * 100) as other:
        assert next(other).sequence == 1


def test_saving_without_an_event_does_not_disturb_the_active_one(
    database: Database, active: DurableSubscription[Any]
) -> None:
    with database.events.durable_subscription(CONSUMER) as second:
        second.save_position()
        assert waits(second)
        second.save_position()
    next(active)
    active.save_position()


@pytest.mark.parametrize("end", ["close", "stop", "database"])
def test_the_wait_for_the_active_consumer_can_be_ended(
    database: Database, active: DurableSubscription[Any], consumers: ThreadPoolExecutor, end: str
) -> None:
    stop = threading.Event()
    second = database.events.durable_subscription(CONSUMER, stop=stop)
    consuming = consumers.submit(list, second)
    ends: dict[str, Callable[[], object]] = {"close": second.close, "stop": stop.set, "database": database.events.close}
    ends[end]()
    # A database closes its subscriptions one after the other, so the second may be active for a moment.
    assert len(consuming.result(PATIENCE)) <= (end == "database")


def test_a_consumer_that_is_no_longer_used_gives_its_place_up(database: Database) -> None:
    for stored in database.events.durable_subscription(CONSUMER):
        assert stored.sequence == 1
        break
    gc.collect()
    with database.events.durable_subscription(CONSUMER) as second:
        assert not waits(second)


def test_an_error_does_not_cost_the_place(database: Database, active: DurableSubscription[Any]) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO events VALUES (6, 'Unheard', '{}', '2026-01-01T00:00:00.000000Z')"))
    assert [next(active).sequence for _ in range(4)] == [2, 3, 4, 5]
    with pytest.raises(Exception, match="cannot be decoded"):
        next(active)
    with database.events.durable_subscription(CONSUMER) as second:
        assert waits(second)


def test_consumers_leave_no_file(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="a")])
        with database.events.durable_subscription(CONSUMER) as subscription:
            next(subscription)
    folder = Path(str(migrated_sqlite_url.database)).parent
    assert [path.name for path in folder.iterdir()] == ["peon.db"]


def test_links_to_a_file_share_its_consumers(migrated_sqlite_url: URL, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(str(migrated_sqlite_url.database))
    with (
        Database.open(url=migrated_sqlite_url, maintain_projections=False) as database,
        Database.open(url=f"sqlite:///{link}", maintain_projections=False) as same,
    ):
        database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="a")])
        with (
            database.events.durable_subscription(CONSUMER) as first,
            same.events.durable_subscription(CONSUMER) as second,
        ):
            next(first)
            assert waits(second)


def test_each_event_is_delivered_once_among_processes(migrated_lasting_url: URL) -> None:
    address = migrated_lasting_url.render_as_string(hide_password=False)
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(60)])
    delivered = context.Queue()
    processes = [context.Process(target=deliver, args=(address, 60, delivered)) for _ in range(2)]
    for process in processes:
        process.start()
    sequences = [delivered.get(timeout=PATIENCE)[1] for _ in range(60)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert Counter(sequences) == Counter(range(1, 61))
    assert delivered.empty()


def test_another_consumer_takes_over_from_a_killed_process_although_its_child_lives(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(2)])
        active = context.Event()
        address = migrated_lasting_url.render_as_string(hide_password=False)
        process = context.Process(target=hold_until_killed, args=(address, active))
        process.start()
        assert active.wait(PATIENCE)
        with database.events.durable_subscription(CONSUMER) as second:
            assert waits(second)
            process.kill()
            process.join(PATIENCE)
            (batch,) = [next(second.batches(timeout=TAKE_OVER_SECONDS))]
            assert [stored.sequence for stored in batch] == [2]


def test_a_forked_child_waits_for_its_parent(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(3)])
        with database.events.durable_subscription(CONSUMER) as subscription:
            next(subscription)
            child = os.fork()
            if not child:
                failed = True
                try:
                    failed = not waits(subscription)
                finally:
                    os._exit(failed)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            subscription.save_position()
            assert next(subscription).sequence == 2
            with database.events.durable_subscription(CONSUMER) as second:
                assert waits(second)


class TestLostConnections:
    @pytest.fixture
    def store(self, migrated_postgresql_url: URL) -> Iterator[Database]:
        """Returns a database whose connections have an `application_name` that no other test uses."""
        name = str(migrated_postgresql_url.query["options"])[-40:]
        url = migrated_postgresql_url.update_query_dict({"application_name": name})
        with Database.open(url=url, maintain_projections=False) as database:
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(5)])
            yield database

    def end_holders(self, store: Database) -> None:
        """Ends the sessions that hold an advisory lock of this test's own schema, as a failing network would."""
        end = text(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND ((classid::bigint << 32) | objid::bigint) = :key"
        )
        with store.events.durable_subscription(CONSUMER) as reading, store.engine.connect() as connection:
            connection.execute(end, {"key": reading._saved.consumer_lock._key})  # type: ignore[attr-defined]

    def test_the_next_event_is_not_delivered_before_the_place_is_back(self, store: Database) -> None:
        with (
            store.events.durable_subscription(CONSUMER) as first,
            store.events.durable_subscription(CONSUMER) as second,
        ):
            next(first)
            first.save_position()
            self.end_holders(store)
            assert next(second).sequence == 2
            assert waits(first)
            second.save_position()
            second.close()
            assert next(first).sequence == 3

    def test_a_consumer_without_competitors_continues(self, store: Database, caplog: pytest.LogCaptureFixture) -> None:
        with store.events.durable_subscription(CONSUMER) as subscription:
            assert next(subscription).sequence == 1  # not saved
            self.end_holders(store)
            assert next(subscription).sequence == 2
            subscription.save_position()
        assert f"the lock of subscription {CONSUMER} of" in caplog.text

    def test_a_silent_connection_is_checked_before_the_next_event(
        self, store: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with store.events.durable_subscription(CONSUMER) as subscription:
            next(subscription)
            lock = subscription._saved.consumer_lock
            assert lock.is_held
            monkeypatch.setattr(postgresql_consumer_lock, "CONFIRM_SECONDS", 0.0)
            assert not lock.is_held
            assert next(subscription).sequence == 2

    def test_the_connection_ends_with_the_subscription(self, store: Database) -> None:
        engine = create_engine(store.engine.url)

        def holders() -> int:
            with engine.connect() as connection:
                return connection.scalars(
                    text(
                        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock%' "
                        "AND pid <> pg_backend_pid() AND application_name = current_setting('application_name')"
                    )
                ).one()

        assert holders() == 0
        with store.events.durable_subscription(CONSUMER) as subscription:
            next(subscription)
            assert holders() == 1
        deadline = time.monotonic() + PATIENCE
        while holders():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        engine.dispose()

    def test_an_unreachable_server_is_an_error_until_it_answers_again(self, store: Database) -> None:
        with store.events.durable_subscription(CONSUMER) as subscription:
            url = store.engine.url
            lock = subscription._saved.consumer_lock
            lock._engine = create_engine(url.set(port=1))  # type: ignore[attr-defined]
            with pytest.raises(StoreUnavailable):
                next(subscription)
            lock._engine = store.engine  # type: ignore[attr-defined]
            assert next(subscription).sequence == 1
