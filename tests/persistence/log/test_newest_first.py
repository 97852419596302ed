"""Reading the log backwards: the same events in the opposite order, by the same indexes."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from helpers.conditions import OTHER, THREAD, TURN, padding
from sqlalchemy import URL, event, text

from peon import AsyncDatabase
from peon.orchestration import ProjectRenamed, ThreadSelected, TurnCompleted, TurnStarted
from peon.persistence import Database, EventDecodeError, EventQuery, UndecodableEvent
from peon.persistence.log import pages, tag_index, tag_walk

QUERIES = [
    EventQuery(),
    EventQuery(thread_id=THREAD),
    EventQuery(thread_id=OTHER),
    EventQuery(thread_id=uuid4()),
    EventQuery(turn_id=TURN, thread_id=THREAD),
    EventQuery(event_types=["TurnStarted", "TurnCompleted"]),
    EventQuery(event_types=["TurnStarted"], thread_id=THREAD),
    EventQuery.any_of(EventQuery(turn_id=TURN), EventQuery(event_types=["ThreadSelected"], thread_id=OTHER)),
]


def fill(database: Database) -> None:
    batch: list[Any] = []
    for number in range(40):
        thread = THREAD if number % 3 else OTHER
        turn = TURN if number % 2 else uuid4()
        batch += [TurnStarted(turn_id=turn, thread_id=thread), ThreadSelected(thread_id=thread)]
        batch += [TurnCompleted(turn_id=turn, thread_id=thread)] * (number % 5 == 0)
    database.events.append_all(batch)


@pytest.fixture(params=[0, 1, 7, 1_000], ids="{} not indexed".format)
def tail_of_the_index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", request.param)
    monkeypatch.setattr(tag_index, "PAGE_MATCHES", 3)
    monkeypatch.setattr(tag_walk, "RANGE_ENTRIES", 4)


@pytest.mark.usefixtures("small_pages", "tail_of_the_index")
def test_the_events_are_those_of_a_stream_in_the_opposite_order(database: Database) -> None:
    fill(database)
    read = database.events.stream
    for query in QUERIES:
        forwards = list(read(query=query))
        assert list(read(query=query, newest_first=True)) == forwards[::-1]
        database.events.append_all(padding(3))  # the end of the log is not indexed
        forwards = list(read(query=query))
        for after, before, limit in [(0, None, 1), (0, None, 0), (5, 60, None), (5, 60, 4), (30, 31, 9), (9, 3, 9)]:
            within = [stored for stored in forwards if after < stored.sequence < (before or 1_000)][::-1]
            backwards = list(read(query=query, newest_first=True, after=after, before=before, limit=limit))
            assert backwards == within[:limit], (query, after, before, limit)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("event_types", [None, ["TurnCompleted"], ["TurnStarted", "ThreadSelected"]])
def test_events_are_also_reversed_without_a_query(database: Database, event_types: list[str] | None) -> None:
    fill(database)
    read = database.events.stream
    forwards = list(read(event_types=event_types))
    assert list(read(event_types=event_types, newest_first=True)) == forwards[::-1]
    assert list(read(event_types=event_types, newest_first=True, limit=5)) == forwards[::-1][:5]
    within = [stored for stored in forwards if 20 < stored.sequence < 50]
    assert list(read(event_types=event_types, newest_first=True, after=20, before=50)) == within[::-1]


@pytest.mark.parametrize("query", [None, EventQuery(thread_id=THREAD)])
def test_the_next_page_continues_before_the_last_event_of_the_previous_one(
    database: Database, query: EventQuery | None
) -> None:
    fill(database)
    everything, before = [], None
    while page := list(database.events.stream(query=query, newest_first=True, limit=7, before=before)):
        everything += page
        before = page[-1].sequence
        database.events.append_all([ThreadSelected(thread_id=THREAD)])  # changes no later page
    assert everything == list(database.events.stream(query=query, newest_first=True, before=everything[0].sequence + 1))


@pytest.mark.usefixtures("read")
def test_large_events_end_a_page_early(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CHARACTERS", 1_000)
    monkeypatch.setattr(pages, "FETCHED_EVENTS", 1)
    project = UUID(int=5)
    database.events.append_all([ProjectRenamed(project_id=project, name=f"{n}" * 700) for n in range(9)])
    for query in (None, EventQuery(project_id=project)):
        backwards = database.events.stream(newest_first=True, query=query)
        assert [stored.sequence for stored in backwards] == [*range(9, 0, -1)]


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("query", [None, EventQuery(thread_id=THREAD)])
def test_events_that_are_stored_during_the_read_are_not_read(database: Database, query: EventQuery | None) -> None:
    fill(database)
    expected = list(database.events.stream(newest_first=True, query=query))
    stream = database.events.stream(newest_first=True, query=query)
    found = [next(stream)]
    database.events.append_all([ThreadSelected(thread_id=THREAD)] * 3)
    assert [*found, *stream] == expected


def test_an_undecodable_last_event_is_the_first_to_be_read(database: Database) -> None:
    fill(database)
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO events VALUES (1000, 'Unknown', '{}', '2025-03-14T09:26:53.589793Z')"))
    with pytest.raises(EventDecodeError, match="event 1000"):
        next(database.events.stream(newest_first=True))
    kept = next(database.events.stream(newest_first=True, undecodable=UndecodableEvent))
    assert isinstance(kept.event, UndecodableEvent)


@pytest.mark.parametrize(("before", "error"), [(-1, ValueError), ("3", TypeError), (True, TypeError)])
def test_a_wrong_value_of_before_is_refused_by_the_call(memory: Database, before: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="before is a number from 0 on"):
        memory.events.stream(newest_first=True, before=before)


def test_before_without_newest_first_is_refused(memory: Database) -> None:
    with pytest.raises(ValueError, match="before was given without newest_first=True"):
        memory.events.stream(before=5)


def test_before_may_be_any_large_number(memory: Database) -> None:
    fill(memory)
    assert next(memory.events.stream(newest_first=True, before=10**30)).sequence == memory.events.last_sequence()


def test_an_event_loop_reads_backwards_too(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        fill(database)
        expected = [list(database.events.stream(query=query, newest_first=True)) for query in (None, *QUERIES)]
        page = list(database.events.stream(newest_first=True, before=50, after=20, limit=7))

    async def read() -> None:
        async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
            for query, forwards in zip((None, *QUERIES), expected, strict=True):
                assert [each async for each in database.events.stream(query=query, newest_first=True)] == forwards
            stream = database.events.stream(newest_first=True, before=50, after=20, limit=7)
            assert [each async for each in stream] == page
            with pytest.raises(ValueError, match="before was given"):
                database.events.stream(before=5)

    asyncio.run(read())


@contextmanager
def noted_statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Notes what the driver executes on connections that are opened from now on."""
    statements: list[tuple[str, Any]] = []

    class Noting(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            statements.append((query, params))
            return super().execute(query, params, **options)

    def note(connection: Any, _: object) -> None:
        if database.engine.dialect.name == "sqlite":
            connection.set_trace_callback(lambda statement: statements.append((statement, ())))
        else:
            connection.cursor_factory = Noting

    database.close()
    event.listen(database.engine, "connect", note)
    yield statements
    event.remove(database.engine, "connect", note)


def test_the_last_event_of_a_long_thread_is_found_by_the_index(migrated_lasting_url: URL) -> None:
    """No statement sorts or reads more than it returns; and few rows are read."""
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([*padding(3_000), *[ThreadSelected(thread_id=THREAD)] * 3_000, *padding(10)])
        query = EventQuery(thread_id=THREAD)
        list(database.events.stream(query=query, limit=1))  # fills the index
        database.events.append_all(padding(2_000))
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")
        list(database.events.stream(query=query, newest_first=True, limit=1))
        with noted_statements(database) as statements:
            assert next(database.events.stream(query=query, newest_first=True, limit=1)).sequence == 6_000
            assert next(database.events.stream(newest_first=True, limit=1)).sequence == 8_010
        noted = [pair for pair in statements if re.match(r"SELECT.*FROM (events|event_tags)", pair[0], re.DOTALL)]
        assert 3 <= len(noted) <= 6
        is_sqlite = database.engine.dialect.name == "sqlite"
        with database.engine.connect() as connection:
            cursor = connection.connection.cursor()
            plans = []
            for statement, parameters in noted:
                cursor.execute(("EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN ") + statement, parameters)
                plans += [str(row[-1]) for row in cursor.fetchall()]
            cursor.close()
    wrong = re.compile("Seq Scan|^SCAN events|^SCAN event_tags|TEMP B-TREE|Sort .*events")
    assert not [plan for plan in plans if wrong.search(plan)], plans
    if not is_sqlite:
        assert any("Backward" in plan for plan in plans), plans
