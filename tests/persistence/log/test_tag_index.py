"""The index of tags: when it is written, how it is queried, and that it matches the log."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.conditions import OTHER, PROJECT, THREAD, TURN, conflict, padding
from helpers.processes import PATIENCE
from sqlalchemy import URL, Connection, event, text

from peon.orchestration import (
    ProjectRenamed,
    ThreadDeleted,
    ThreadSelected,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import (
    AppendCondition,
    ConcurrencyError,
    Database,
    EventQuery,
    EventStore,
    create_engine,
)
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.log import pages, tag_index, tag_walk

pytestmark = pytest.mark.postgresql_too("locks of those who fill the index")

DOCUMENTATION = Path(__file__).parents[3] / "docs"


def test_a_query_first_indexes_many_unindexed_events(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 10)
    monkeypatch.setattr(tag_index, "PAGES_A_COMMIT", 1)
    database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(2_500)])
    by_turn, by_thread = EventQuery(turn_id=TURN), EventQuery(turn_id=TURN, thread_id=THREAD)
    for query in (by_turn, by_thread):  # for the second query, one tag is indexed and one is not
        with pytest.raises(ConcurrencyError) as caught:
            database.events.append_all(padding(1), condition=AppendCondition(query, 0))
        assert caught.value.sequence == 1
    (late,) = database.events.append_all([TurnCompleted(turn_id=TURN, thread_id=THREAD)])

    assert [s.sequence for s in database.events.stream(query=by_thread)] == [1, late.sequence]
    assert [s.sequence for s in database.events.stream(query=by_thread, after=1)] == [late.sequence]
    assert [s.sequence for s in database.events.stream(query=by_thread, limit=1)] == [1]
    indexed = rows(database, "SELECT name, sequence FROM tag_positions ORDER BY name")
    assert indexed == [("thread_id", 2_501), ("turn_id", 2_501)]


def test_a_few_large_events_are_indexed_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_CHARACTERS", 10_000)
    monkeypatch.setattr(pages, "PAGE_CHARACTERS", 1_000)
    store, condition = database.events, AppendCondition(EventQuery(thread_id=THREAD), after=0)
    large = [ProjectRenamed(project_id=PROJECT, name="x" * 1_000)]
    store.append_all(large * 5)
    store.append_all(large * 15, condition=condition)
    assert rows(database, "SELECT * FROM tag_positions") == []

    store.append_all(padding(1), condition=condition)
    store.append_all([ThreadDeleted(thread_id=THREAD)], condition=condition)
    assert rows(database, "SELECT name, sequence FROM tag_positions") == [("thread_id", 20)]

    store.append_all(large * 20)
    assert [conflict(store, AppendCondition(condition.query, after)) for after in (0, 21, 22, 42)] == [
        22,
        22,
        None,
        None,
    ]
    assert rows(database, "SELECT name, sequence FROM tag_positions") == [("thread_id", 42)]


def by_hand(database: Database, statement: str) -> None:
    triggers = ["events_refuse_update", "events_refuse_delete"]
    if database.engine.dialect.name == "postgresql":
        triggers = ["events_refuse_change ON events"]
    with database.engine.begin() as connection:
        for trigger in triggers:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql(statement)


def test_rows_that_were_removed_by_hand_are_skipped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    monkeypatch.setattr(tag_index, "PAGE_MATCHES", 2)
    stored = database.events.append_all([ThreadDeleted(thread_id=THREAD) for _ in range(8)])
    query = EventQuery(thread_id=THREAD)
    assert list(database.events.stream(query=query)) == stored
    by_hand(database, "DELETE FROM events WHERE sequence IN (1, 2, 3, 6, 8)")

    assert [s.sequence for s in database.events.stream(query=query)] == [4, 5, 7]
    assert [conflict(database.events, AppendCondition(query, after)) for after in (0, 4, 5, 7)] == [4, 5, 7, None]


def test_tags_at_different_positions_are_indexed_after_the_last_row_was_removed(database: Database) -> None:
    database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(2)])
    index = database.events._reader._index
    with database.engine.begin() as connection:
        index.extend(connection, ["thread_id"])
    by_hand(database, "DELETE FROM events WHERE sequence = 3")
    with database.engine.begin() as connection:
        index.extend(connection, ["thread_id", "turn_id"])

    indexed = rows(database, "SELECT name, sequence FROM tag_positions ORDER BY name")
    assert indexed == [("thread_id", 3), ("turn_id", 3)]


def test_an_index_that_was_emptied_as_documented_is_filled_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    database.events.append_all([ThreadDeleted(thread_id=THREAD), ThreadDeleted(thread_id=THREAD)])
    query = EventQuery(thread_id=OTHER)
    assert list(database.events.stream(query=query)) == []
    by_hand(database, f"UPDATE events SET payload = replace(payload, '{THREAD}', '{OTHER}') WHERE sequence = 2")
    assert conflict(database.events, AppendCondition(query, after=0)) is None
    page = (DOCUMENTATION / "how-to" / "remove-an-event.md").read_text(encoding="utf-8")
    tables = re.findall(r'"(\w+)"', re.search(r"for table in \((.*)\):", page)[1])  # type: ignore[index]
    assert len(tables) == 3
    with database.engine.begin() as connection:
        for table in tables:
            connection.exec_driver_sql(f"DELETE FROM {table}")

    assert list(database.events.stream(query=query)) == database.events.replay_all()[1:]
    assert conflict(database.events, AppendCondition(query, after=0)) == 2


def test_threads_that_index_at_once_take_turns(migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = 4
    monkeypatch.setattr(pages, "PAGE_EVENTS", 10)
    monkeypatch.setattr(tag_index, "PAGES_A_COMMIT", 1)
    together = threading.Barrier(threads)
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all(padding(1_000))
        index = database.events._reader._index

        def work(_: int) -> None:
            together.wait(PATIENCE)
            index.catch_up(["thread_id"])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        assert rows(database, "SELECT count(*), max(sequence) FROM event_tags") == [(1_000, 1_000)]


def rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_appends_without_a_condition_write_no_index(database: Database) -> None:
    database.events.append_all(padding(2_000))
    database.events.append_all(padding(1), condition=AppendCondition(EventQuery(thread_id=THREAD), after=1_990))

    assert rows(database, "SELECT * FROM tag_positions") == []
    assert rows(database, "SELECT * FROM event_tags") == []


@contextmanager
def statements_of_the_index(database: Database) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "event_tags" in statement:
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("analyzed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["sqlite_url", "postgresql_url"])
def test_queries_read_ranges_of_the_index(request: pytest.FixtureRequest, backend: str, analyzed: bool) -> None:
    """With or without statistics, no planner chooses to sort the remaining rows of a tag."""
    url: URL = request.getfixturevalue(backend)
    with Database.open(url=url, maintain_projections=False) as database:
        database.events.append_all([*padding(4_000), *(TurnStarted(turn_id=TURN, thread_id=uuid4()) for _ in range(5))])
        query = EventQuery(event_types=["ThreadSelected", "TurnStarted"])
        both = EventQuery(event_types=["TurnStarted"], turn_id=TURN)
        assert len(list(database.events.stream(query=query))) == 4_005
        assert len(list(database.events.stream(query=both))) == 5
        either = EventQuery.any_of(both, EventQuery(thread_id=UUID(int=100)))
        assert len(list(database.events.stream(query=either))) == 6
        with database.engine.connect() as connection:
            if analyzed:
                connection.exec_driver_sql("ANALYZE")
                connection.commit()
            with statements_of_the_index(database) as statements:
                list(database.events.stream(query=query))
                list(database.events.stream(query=either))
                list(database.events.stream(query=either, newest_first=True))
                assert conflict(database.events, AppendCondition(both, after=0)) == 4_001
            assert len(statements) > 10
            explain = "EXPLAIN QUERY PLAN " if backend == "sqlite_url" else "EXPLAIN "
            plans = [
                str(row[-1])
                for statement, parameters in statements
                for row in connection.exec_driver_sql(explain + statement, parameters)
            ]
    wrong = re.compile("Seq Scan|^SCAN|Sort|Bitmap|TEMP B-TREE")
    assert not [plan for plan in plans if wrong.search(plan)], plans


def test_a_tag_of_few_events_is_found_among_many_of_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    monkeypatch.setattr(tag_walk, "RANGE_ENTRIES", 10)
    starts = [TurnStarted(turn_id=uuid4(), thread_id=THREAD) for _ in range(1_000)]
    few = [ThreadDeleted(thread_id=OTHER), ThreadDeleted(thread_id=THREAD), ThreadDeleted(thread_id=OTHER)]
    database.events.append_all([*starts, few[0], *starts, few[1], *starts, few[2]])
    query = EventQuery(thread_id=THREAD, event_types=["ThreadDeleted"])
    assert [stored.sequence for stored in database.events.stream(query=query)] == [2_002]

    with statements_of_the_index(database) as statements:
        assert [stored.sequence for stored in database.events.stream(query=query)] == [2_002]
        assert conflict(database.events, AppendCondition(query, after=0)) == 2_002
        assert conflict(database.events, AppendCondition(query, after=2_002)) is None
    assert 0 < len(statements) < 30


def test_long_reads_of_the_index_do_not_hold_the_write_lock(
    migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case is two tags whose events alternate, while no event has both."""
    monkeypatch.setattr(tag_walk, "RANGE_ENTRIES", 5)
    for name, value in {"TAIL_EVENTS": 10, "LOCKED_ROUNDS": 3}.items():
        monkeypatch.setattr(tag_index, name, value)
    under_lock: list[str] = []

    def note(connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        options = connection.get_execution_options()
        reads = READ_ONLY in options or options.get("isolation_level") == "REPEATABLE READ"
        if statement.startswith("SELECT") and "event_tags" in statement and not reads:
            under_lock.append(statement)

    turns = [ThreadDeleted(thread_id=THREAD), ThreadSelected(thread_id=OTHER)] * 100
    query = EventQuery(event_types=["ThreadSelected"], thread_id=THREAD)
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        event.listen(database.engine, "before_cursor_execute", note)
        database.events.append_all(turns)
        assert list(database.events.stream(query=query)) == []
        assert not under_lock
        assert conflict(database.events, AppendCondition(query, after=0)) is None
        assert 0 < len(under_lock) <= 6
        (found,) = database.events.append_all([ThreadSelected(thread_id=THREAD)])
        database.events.append_all(turns)
        with pytest.raises(ConcurrencyError) as caught:
            database.events.append_all([], condition=AppendCondition(query, after=0))
        assert (caught.value.sequence, caught.value.after) == (found.sequence, 0)
        assert len(under_lock) < 20
        with database.engine.begin() as connection:  # the caller's own transaction, which waits for the answer
            database.events.append_all([], condition=AppendCondition(query, found.sequence), connection=connection)
        assert len(under_lock) > 40


def test_a_read_only_file_is_read_without_an_index(sqlite_url: URL, tmp_path: Any) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(3_000)])
    engine = create_engine(f"sqlite:///file:{sqlite_url.database}?mode=ro&uri=true")
    store = EventStore(engine)
    assert [s.sequence for s in store.stream(query=EventQuery(turn_id=TURN))] == [1]
    engine.dispose()


def test_a_read_does_not_wait_for_the_lock_that_its_index_needs(
    migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 3)
    query = EventQuery(thread_id=THREAD)
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([*padding(10), ThreadDeleted(thread_id=THREAD)])
        with database.engine.begin() as connection:
            database.events.append_all([], condition=AppendCondition(query, after=11), connection=connection)
            database.settings.set("held", True, connection=connection)  # holds the write lock that the index needs
            database.events._reader._index.extend(connection, ["thread_id"])
            assert [stored.sequence for stored in database.events.stream(query=query)] == [11]
