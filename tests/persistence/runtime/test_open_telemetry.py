"""Spans and metrics, recorded by OpenTelemetry's SDK, for threads and for an event loop."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from helpers.orchestration_scene import SCENE, append_alone
from helpers.processes import PATIENCE
from helpers.recorded_telemetry import RecordedTelemetry, attributes_of, identity_of, parent_of
from helpers.secret import SECRET
from opentelemetry import trace
from sqlalchemy import URL, Connection, event

from peon.orchestration import ProjectRenamed
from peon.persistence import AppendCondition, ConcurrencyError, Database, EventQuery, EventStore
from peon.persistence.asynchronous import AsyncDatabase, AsyncEventStore
from peon.persistence.backends import retries
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.runtime import open_telemetry, telemetry

Opener = Callable[..., Database]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedTelemetry]:
    recorded = RecordedTelemetry()
    monkeypatch.setattr(open_telemetry, "instruments", recorded.instruments)
    yield recorded
    recorded.close()


def renamed(name: str = SECRET) -> ProjectRenamed:
    return ProjectRenamed(project_id=uuid4(), name=name)


def place_of(url: URL) -> dict[str, object]:
    if url.get_backend_name() == "postgresql":
        return {"db.system.name": "postgresql", "db.namespace": url.database, "server.address": url.host}
    in_memory = url.database in (None, "", ":memory:")
    return {"db.system.name": "sqlite", "db.namespace": ":memory:" if in_memory else "peon.db"}


class SpanOfHook:
    """Remembers which span is current in the transaction of an append."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def __call__(self, _: Connection, stored: object) -> None:
        self.found.append(identity_of(trace.get_current_span()))


class TestAppend:
    def test_has_a_span(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)

        database.events.append_all([renamed(), renamed()])
        database.events.append_all([renamed()])

        both, one = recorded.spans("append")
        place = place_of(database.engine.url)
        waited = attributes_of(both)["peon.lock.wait_time"]
        assert attributes_of(both) == {
            **place,
            "db.operation.name": "append",
            "db.operation.batch.size": 2,
            "peon.events": 2,
            "peon.commit.requests": 1,
            "peon.lock.wait_time": waited,
        }
        assert 0 <= waited < 20
        assert both.name == f"append {place['db.namespace']}"
        assert both.kind is trace.SpanKind.CLIENT
        assert "db.operation.batch.size" not in attributes_of(one)
        assert SECRET not in recorded.everything()

    def test_that_is_refused_has_the_type_of_its_error(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        database.events.append_all([renamed()])

        with pytest.raises(ConcurrencyError):
            database.events.append_all(
                [renamed()], condition=AppendCondition(EventQuery(event_types=["ProjectRenamed"]), after=0)
            )

        _, refused = recorded.spans("append")
        assert attributes_of(refused)["error.type"] == "ConcurrencyError"
        assert refused.status.status_code is trace.StatusCode.ERROR
        assert {point.value for point in recorded.points("peon.events.stored")} == {1}

    def test_shows_no_text_of_an_exception(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        def fail(_: Connection, stored: object) -> None:
            raise RuntimeError(SECRET)

        store: EventStore[Any] = EventStore(open_empty(maintain_projections=False).engine, on_append=fail)
        with pytest.raises(RuntimeError):
            store.append_all([renamed()])
        store.close()

        (failed,) = recorded.spans("append")
        assert attributes_of(failed)["error.type"] == "RuntimeError"
        assert SECRET not in recorded.everything()

    def test_of_a_repeated_command_counts_no_event(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        event, command = renamed(), uuid4()
        for _ in range(2):
            database.events.append_all([event], command_id=command)

        first, repeated = recorded.spans("append")
        assert "peon.append.repeated" not in attributes_of(first)
        assert attributes_of(repeated)["peon.append.repeated"] is True
        assert [point.value for point in recorded.points("peon.events.stored")] == [1]

    def test_within_a_transaction_of_the_caller_counts_no_shared_commit(
        self, open_empty: Opener, recorded: RecordedTelemetry
    ) -> None:
        database = open_empty(maintain_projections=False)
        with database.engine.begin() as connection:
            database.events.append_all([renamed()], connection=connection)

        (span,) = recorded.spans("append")
        assert "peon.commit.requests" not in attributes_of(span)

    def test_of_threads_says_how_many_shared_the_commit(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        writer: Any = database.events._writer
        held = threading.Event()

        def hold(_: object) -> None:
            if not held.is_set():
                held.set()
                deadline = time.monotonic() + PATIENCE
                while len(writer._waiting) < 3 and time.monotonic() < deadline:
                    time.sleep(0.001)

        event.listen(database.engine, "commit", hold)
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(database.events.append_all, [renamed()])
            assert held.wait(PATIENCE)
            for waiting in [pool.submit(database.events.append_all, [renamed()]) for _ in range(3)]:
                waiting.result(PATIENCE)
            first.result(PATIENCE)

        assert sorted(attributes_of(span)["peon.commit.requests"] for span in recorded.spans("append")) == [1, 3, 3, 3]
        assert sum(point.count for point in recorded.points("peon.lock.wait_time")) == 2

    def test_of_tasks_says_how_many_shared_the_commit(
        self, migrated_lasting_url: URL, recorded: RecordedTelemetry
    ) -> None:
        async def append() -> None:
            async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
                await asyncio.gather(*(database.events.append_all([renamed()]) for _ in range(3)))

        asyncio.run(append())
        assert [attributes_of(span)["peon.commit.requests"] for span in recorded.spans("append")] == [3, 3, 3]
        assert SECRET not in recorded.everything()


class TestStatements:
    """The spans of statements, such as those of SQLAlchemy's instrumentation, belong to the append that runs them."""

    def test_of_threads_are_children_of_their_append(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        hook = SpanOfHook()
        store: EventStore[Any] = EventStore(open_empty(maintain_projections=False).engine, on_append=hook)

        with recorded.tracer.start_as_current_span("request") as request:
            store.append_all([renamed()])
        store.append_all([renamed()])
        store.close()

        spans = recorded.spans("append")
        assert hook.found == [identity_of(span) for span in spans]
        assert [parent_of(span) for span in spans] == [identity_of(request), None]
        assert not trace.get_current_span().get_span_context().is_valid

    def test_of_tasks_are_children_of_their_append(
        self, migrated_lasting_url: URL, recorded: RecordedTelemetry
    ) -> None:
        hook = SpanOfHook()

        async def serve() -> None:
            first_is_stored = asyncio.Event()

            def on_append(connection: Connection, stored: object) -> None:
                hook(connection, stored)
                first_is_stored.set()

            async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
                store: AsyncEventStore[Any] = AsyncEventStore(database.engine, on_append=on_append)

                async def request(name: str) -> None:
                    with recorded.tracer.start_as_current_span(name):
                        await store.append_all([renamed()])

                one = asyncio.create_task(request("one"))
                await first_is_stored.wait()
                await request("two")  # performed by the task that the first append has started
                await one
                await store.close()

        asyncio.run(serve())
        spans = {parent_of(span): identity_of(span) for span in recorded.spans("append")}
        requests = [identity_of(recorded.spans(name)[0]) for name in ("one", "two")]
        assert hook.found == [spans[request] for request in requests]


class TestOtherOperations:
    def test_replay_has_a_span(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        database.events.append_all([renamed(), renamed()])
        database.events.replay_from(2)

        (span,) = recorded.spans("replay")
        assert attributes_of(span)["peon.events"] == 1

    def test_replay_in_an_event_loop_has_a_span(self, migrated_lasting_url: URL, recorded: RecordedTelemetry) -> None:
        async def replay() -> None:
            async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
                await database.events.append_all([renamed(), renamed()])
                await database.events.replay_all()

        asyncio.run(replay())
        (span,) = recorded.spans("replay")
        assert attributes_of(span)["peon.events"] == 2

    def test_catch_up_and_rebuild_have_spans(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty()
        append_alone(database, *SCENE)
        recorded.forget_spans()

        database.projections.catch_up()
        database.projections.catch_up()
        database.projections.rebuild()

        for operation in ("catch_up", "rebuild"):
            (span,) = recorded.spans(operation)
            assert attributes_of(span)["peon.projection.name"] == "orchestration"
            assert attributes_of(span)["peon.events"] == len(SCENE)

    def test_migration_has_a_span(self, sqlite_url: URL, recorded: RecordedTelemetry) -> None:
        Database.open(url=sqlite_url).close()

        (span,) = recorded.spans("migrate")
        assert attributes_of(span)["peon.from.revision"] == "base"
        Database.open(url=sqlite_url).close()
        assert len(recorded.spans("migrate")) == 1


class TestMetrics:
    def test_count_events_and_time_appends(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        database.events.append_all([renamed(), renamed()])
        database.events.append_all([renamed()])

        of_append = {**place_of(database.engine.url), "db.operation.name": "append"}
        (stored,) = recorded.points("peon.events.stored")
        assert (stored.value, dict(stored.attributes)) == (3, of_append)
        (duration,) = recorded.points("db.client.operation.duration")
        assert (duration.count, dict(duration.attributes)) == (2, of_append)
        assert duration.explicit_bounds == tuple(open_telemetry.SECONDS_BUCKETS)
        (waited,) = recorded.points("peon.lock.wait_time")
        assert (waited.count, dict(waited.attributes)) == (2, place_of(database.engine.url))

    def test_have_the_lag_of_each_projection(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty()
        append_alone(database, *SCENE)
        seen: list[int] = []

        database.projections.catch_up(lambda *_: seen.append(recorded.points("peon.projection.lag")[0].value))

        assert seen[0] == len(SCENE)
        (point,) = recorded.points("peon.projection.lag")
        assert (point.value, point.attributes["peon.projection.name"]) == (0, "orchestration")

    def test_have_the_lag_of_each_subscription(self, open_empty: Opener, recorded: RecordedTelemetry) -> None:
        database = open_empty(maintain_projections=False)
        before = datetime.now(UTC)
        (stored,) = database.events.append_all([renamed()])
        with database.events.durable_subscription("mail") as mail, database.events.subscribe() as other:
            assert next(mail) == next(other) == stored

        points = {point.attributes.get("peon.subscription.name"): point for point in recorded.points(LAG)}
        assert points.keys() == {"mail", None}
        assert all(point.count == 1 for point in points.values())
        assert timedelta(0) <= timedelta(seconds=points["mail"].sum) <= datetime.now(UTC) - before

    def test_have_the_lag_of_a_subscription_in_an_event_loop(
        self, migrated_lasting_url: URL, recorded: RecordedTelemetry
    ) -> None:
        async def follow() -> None:
            async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
                await database.events.append_all([renamed(), renamed()])
                async with database.events.durable_subscription("mail") as mail:
                    await anext(mail)

        asyncio.run(follow())
        (point,) = recorded.points(LAG)
        assert (point.count, point.attributes["peon.subscription.name"]) == (1, "mail")

    def test_count_retries(
        self, open_empty: Opener, recorded: RecordedTelemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = open_empty(maintain_projections=False)
        attempts = fail_once(monkeypatch)

        in_own_transaction(database.engine, database.events._driver_errors, attempts)

        (point,) = recorded.points("peon.transaction.retries")
        assert (point.value, point.attributes["peon.retry.reason"]) == (1, "undone")


LAG = "peon.subscription.lag"


def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Connection], None]:
    """Returns work that a server undoes at its first attempt."""
    monkeypatch.setattr(retries, "reason_to_repeat", lambda *_, **__: "undone")
    attempts = iter([RuntimeError("undone")])

    def work(_: Connection) -> None:
        for error in attempts:
            raise error

    return work


class TestWithout:
    def test_a_tracer_provider_nothing_becomes_current(self, open_empty: Opener) -> None:
        hook = SpanOfHook()
        store: EventStore[Any] = EventStore(open_empty(maintain_projections=False).engine, on_append=hook)
        store.append_all([renamed()])
        store.close()
        assert hook.found == [trace.INVALID_SPAN_ID]

    def test_open_telemetry_nothing_is_recorded(
        self, open_empty: Opener, recorded: RecordedTelemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "peon.persistence.runtime.open_telemetry", None)
        telemetry._open_telemetry.cache_clear()
        try:
            database = open_empty()
            database.events.append_all(SCENE)
            assert database.events.replay_all()
        finally:
            telemetry._open_telemetry.cache_clear()
        assert not recorded.spans("append")

    def test_the_instrumentation_of_peon_nothing_is_recorded(
        self, open_empty: Opener, recorded: RecordedTelemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(telemetry.SWITCH, "sqlalchemy, peon")
        open_empty().events.append_all(SCENE)
        assert not recorded.spans("append")
        assert not recorded.points("peon.events.stored")
