import gc
import re
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy
from helpers.event_strategies import orchestration_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, event, text

from peon.orchestration import MessageChunkReceived, OrchestrationEvent, ProjectCreated, ProjectRenamed
from peon.persistence import (
    Database,
    EventEncodeError,
    EventStore,
    StoredEvent,
    StoreUnavailable,
    create_engine,
    upgrade,
)
from peon.persistence.backends.postgresql_log_head import PostgreSQLLogHead
from peon.persistence.backends.sqlite_log_head import SQLiteLogHead
from peon.persistence.log import pages


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


PROJECT = UUID(int=7)


def renamed(*names: str) -> list[OrchestrationEvent]:
    return [ProjectRenamed(project_id=PROJECT, name=name) for name in names]


def names(log: list[StoredEvent[OrchestrationEvent]]) -> list[str]:
    return [stored.event.name for stored in log if isinstance(stored.event, ProjectRenamed)]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 10)


@pytest.fixture
def statements(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


def test_an_empty_batch_touches_nothing(database: Database, statements: list[str]) -> None:
    assert database.events.append_all([]) == []
    assert statements == []


def test_stored_events_are_frozen_and_carry_an_aware_time(database: Database) -> None:
    (stored,) = database.events.append_all(renamed("a"))

    assert stored.stored_at.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    with pytest.raises(AttributeError):
        stored.sequence = 2  # type: ignore[misc]


def test_the_row_holds_type_payload_and_a_fixed_width_time(database: Database) -> None:
    (stored,) = database.events.append_all(renamed("a"))

    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT sequence, event_type, payload, stored_at FROM events")).one()

    assert row[:3] == (1, "ProjectRenamed", stored.event.model_dump_json())
    assert row.stored_at == stored.stored_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert len(row.stored_at) == 27


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(orchestration_events, max_size=6))
def test_any_event_is_read_back_equal(database: Database, batch: list[OrchestrationEvent]) -> None:
    before = database.events.last_sequence()

    stored = database.events.append_all(batch)

    assert [s.event for s in stored] == batch
    assert [s.sequence for s in stored] == list(range(before + 1, before + 1 + len(batch)))
    assert database.events.replay_from(before + 1) == stored


class TestJoiningATransaction:
    def test_the_caller_commits(self, database: Database) -> None:
        with database.engine.begin() as connection:
            stored = database.events.append_all(renamed("a", "b"), connection=connection)
            connection.execute(text("INSERT INTO settings VALUES ('k', '1')"))

        assert database.events.replay_all() == stored

    def test_a_rollback_removes_the_events_and_frees_their_sequences(self, database: Database) -> None:
        database.events.append_all(renamed("a"))
        with database.engine.connect() as connection:
            stored = database.events.append_all(renamed("b", "c"), connection=connection)
            assert [s.sequence for s in stored] == [2, 3]
            connection.rollback()

        (next_one,) = database.events.append_all(renamed("d"))

        assert next_one.sequence == 2
        assert names(database.events.replay_all()) == ["a", "d"]

    def test_a_failed_append_leaves_no_trace_in_it(self, database: Database) -> None:
        with database.engine.begin() as connection:
            database.events.append_all(renamed("a"), connection=connection)
            with pytest.raises(EventEncodeError):
                database.events.append_all([*renamed("b"), "no event"], connection=connection)  # type: ignore[list-item]
            database.events.append_all(renamed("c"), connection=connection)

        assert names(database.events.replay_all()) == ["a", "c"]

    def test_an_append_that_fails_after_writing_leaves_no_trace_in_it(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head = PostgreSQLLogHead if database.engine.dialect.name == "postgresql" else SQLiteLogHead
        written = head.add

        def write_then_fail(*arguments: Any) -> None:
            written(*arguments)
            raise LookupError

        with database.engine.begin() as connection:
            database.events.append_all(renamed("a"), connection=connection)
            with monkeypatch.context() as patched, pytest.raises(LookupError):
                patched.setattr(head, "add", write_then_fail)
                database.events.append_all(renamed("b"), connection=connection)
            (third,) = database.events.append_all(renamed("c"), connection=connection)

        assert third.sequence == 2
        assert names(database.events.replay_all()) == ["a", "c"]

    def test_two_appends_have_consecutive_sequences(self, database: Database) -> None:
        with database.engine.begin() as connection:
            first = database.events.append_all(renamed("a"), connection=connection)
            second = database.events.append_all(renamed("b"), connection=connection)

        assert [s.sequence for s in first + second] == [1, 2]

    @pytest.mark.parametrize("outcome", ["commit", "rollback"])
    def test_works_on_an_engine_of_the_application(self, sqlite_url: URL, outcome: str) -> None:
        own = create_engine(sqlite_url)
        upgrade(own)
        own.dispose()
        engine = sqlalchemy.create_engine(sqlite_url)
        store = EventStore(engine)
        with engine.connect() as connection:
            store.append_all(renamed("a", "b"), connection=connection)
            getattr(connection, outcome)()

        assert names(store.replay_all()) == (["a", "b"] if outcome == "commit" else [])
        store.close()
        engine.dispose()


def test_an_event_store_works_on_an_engine_of_the_application(lasting_url: URL) -> None:
    own = create_engine(lasting_url)
    upgrade(own)
    own.dispose()
    engine = sqlalchemy.create_engine(lasting_url)
    store = EventStore(engine)

    stored = store.append_all(renamed("a", "b"))

    assert store.replay_all() == stored
    store.close()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("size", [1, 2, 16, 17, 18, 33, 40, 1_000])
def test_a_batch_of_any_size_is_stored_in_order(database: Database, size: int) -> None:
    log = [s for start in (0, size) for s in database.events.append_all(renamed(*map(str, range(start, start + size))))]

    assert [(s.sequence, s.event.name) for s in log] == [(n + 1, str(n)) for n in range(2 * size)]  # type: ignore[union-attr]
    assert database.events.replay_all() == log


class TestStream:
    @pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 37])
    def test_yields_all_across_pages(self, database: Database, count: int) -> None:
        stored = database.events.append_all(renamed(*map(str, range(count))))

        assert list(database.events.stream()) == stored
        assert database.events.replay_all() == stored

    def test_after_and_limit(self, database: Database) -> None:
        stored = database.events.append_all(renamed(*map(str, range(25))))

        for after in (0, 1, 10, 24, 25):
            for limit in (None, 0, 1, 10, 12, 2**70):
                found = list(database.events.stream(after=after, limit=limit))
                assert found == stored[after:][:limit], (after, limit)

    def test_yields_only_the_given_types(self, database: Database) -> None:
        created = ProjectCreated(project_id=PROJECT, name="n", path="/n")
        database.events.append_all([*renamed(*"abcdefghijkl"), created, *renamed("z"), created])

        found = list(database.events.stream(event_types=["ProjectCreated", "TurnStarted"]))

        assert [s.sequence for s in found] == [13, 15]
        assert list(database.events.stream(event_types=["ProjectCreated"], limit=1)) == found[:1]

    def test_yields_events_that_are_stored_while_it_runs_once_and_in_order(self, database: Database) -> None:
        database.events.append_all(renamed(*map(str, range(15))))
        seen = []
        for stored in database.events.stream():
            seen.append(stored.sequence)
            if stored.sequence <= 30:
                database.events.append_all(renamed("later"))

        assert seen == list(range(1, 46))
        assert database.events.last_sequence() == 45

    def test_holds_no_connection_between_pages(self, database: Database) -> None:
        database.events.append_all(renamed(*map(str, range(25))))
        database.events.close()

        stream = database.events.stream()
        list(islice(stream, 5))

        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert len(list(stream)) == 20

    def test_large_events_make_a_page_shorter(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "PAGE_EVENTS", 1_000)
        monkeypatch.setattr(pages, "FETCHED_EVENTS", 1)
        monkeypatch.setattr(pages, "PAGE_CHARACTERS", 3_000_000)
        database.events.append_all(renamed(*["x" * 1_000_000] * 12))
        gc.collect()
        tracemalloc.start()
        for _ in database.events.stream():
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        # PostgreSQL's client keeps the whole page that the server sends.
        assert peak < (8_000_000 if database.engine.dialect.name == "sqlite" else 60_000_000)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"after": -1}, ValueError),
            ({"limit": -1}, ValueError),
            ({"undecodable": "skip"}, ValueError),
            ({"event_types": "ProjectCreated"}, TypeError),
            ({"event_types": [ProjectCreated]}, TypeError),
        ],
    )
    def test_wrong_arguments_fail_at_the_call(
        self, database: Database, arguments: dict[str, object], error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=next(iter(arguments))):
            database.events.stream(**arguments)  # type: ignore[call-overload]


def test_replay_from_a_sequence_below_the_first_is_the_whole_log(database: Database) -> None:
    stored = database.events.append_all(renamed("a", "b"))

    assert database.events.replay_from(0) == stored
    with pytest.raises(ValueError, match="sequence"):
        database.events.replay_from(-1)


@pytest.mark.parametrize("enabled", [True, False])
def test_replay_leaves_the_garbage_collector_as_it_was(database: Database, enabled: bool) -> None:
    try:
        if not enabled:
            gc.disable()
        database.events.replay_all()
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def use_the_log(database: Database) -> None:
    database.events.append_all(renamed("a"))
    list(database.events.stream(limit=1))
    list(database.events.stream(limit=1, event_types=["ProjectRenamed"]))
    database.events.last_sequence()


def test_every_query_is_served_by_the_primary_key(sqlite_url: URL) -> None:
    queries: list[str] = []
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        for connection in (database.engine.raw_connection(), database.engine.raw_connection()):
            connection.dbapi_connection.set_trace_callback(queries.append)  # type: ignore[union-attr]
            connection.close()
        use_the_log(database)
        with database.engine.connect() as connection:
            plans = {
                query: [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
                for query in list(queries)
                if query.startswith("SELECT")
            }

    assert len(plans) == 3
    for query, (plan,) in plans.items():
        if "max(" in query:
            assert plan.startswith("SEARCH events")
        else:
            assert plan == "SEARCH events USING INTEGER PRIMARY KEY (rowid>?)"


def test_every_query_is_served_by_an_index_in_postgresql_too(migrated_postgresql_url: URL) -> None:
    statements: list[tuple[Any, Any]] = []

    class Noting(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            statements.append((query, params))
            return super().execute(query, params, **options)

    def note(connection: Any, _: object) -> None:
        connection.cursor_factory = Noting

    with Database.open(url=migrated_postgresql_url, maintain_projections=False) as database:
        database.events.append_all(renamed("a") * 5_000)  # with few rows, the server would choose a sequential scan
        with database.engine.begin() as connection:
            connection.execute(text("ANALYZE events"))
        database.close()
        event.listen(database.engine, "connect", note)
        use_the_log(database)
        on_the_log = [pair for pair in statements if "FROM events" in pair[0]]
        with database.engine.connect() as connection:
            cursor = connection.connection.cursor()
            plans = []
            for query, parameters in on_the_log:
                cursor.execute(f"EXPLAIN {query}", parameters)
                plans.append("\n".join(line for (line,) in cursor.fetchall()))

    assert len(plans) == 4  # the append reads the last sequence
    for plan in plans:
        assert re.search(r"Index (Only )?Scan .*using (pk_events|idx_events_sequence) on events", plan), plan
        assert "Seq Scan" not in plan


@pytest.mark.slow
def test_memory_stays_constant_while_a_million_events_are_streamed(sqlite_url: URL) -> None:
    chunk = MessageChunkReceived(message_id=uuid4(), turn_id=uuid4(), thread_id=uuid4(), delta="x" * 40)
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        for _ in range(20):
            database.events.append_all([chunk] * 50_000)

        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        before = resident()
        highest = 0
        count = 0
        for count, _ in enumerate(database.events.stream(), 1):
            if count % 50_000 == 0:
                highest = max(highest, resident())
        assert count == 1_000_000
        assert highest - before < 30_000_000


def test_a_failed_read_is_not_mistaken_for_the_end_of_the_log(sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        database.events.append_all(renamed("a"))
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE events RENAME TO elsewhere"))
        with pytest.raises(StoreUnavailable, match="no such table"):
            database.events.replay_all()
