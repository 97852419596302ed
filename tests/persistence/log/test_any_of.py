"""Queries of several items, of which one must match."""

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers.conditions import OTHER, PROJECT, THREAD, TURN, conflict, padding
from helpers.processes import PATIENCE
from sqlalchemy import URL, Connection, event

from peon import AsyncDatabase
from peon.orchestration import (
    OrchestrationEvent,
    ProjectRenamed,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import AppendCondition, ConcurrencyError, Database, EventQuery
from peon.persistence.log import tag_index, tag_walk

EVERYTHING_OF_A_PROJECT = EventQuery.any_of(EventQuery(project_id=PROJECT), EventQuery(thread_id=THREAD))


def created() -> ThreadCreated:
    return ThreadCreated(thread_id=THREAD, project_id=PROJECT, provider="claude", model="m", runtime_mode="full_access")


def log_of_a_project() -> list[OrchestrationEvent]:
    """Returns events of which the query of the project matches all but the last two; the second by both items."""
    return [
        ProjectRenamed(project_id=PROJECT, name="x"),
        created(),
        TurnStarted(turn_id=TURN, thread_id=THREAD),
        ProjectRenamed(project_id=OTHER, name="x"),
        ThreadSelected(thread_id=OTHER),
    ]


def test_an_event_matches_if_one_item_does_and_is_returned_once(database: Database, read: None) -> None:
    stored = database.events.append_all(log_of_a_project())
    query = EVERYTHING_OF_A_PROJECT
    assert list(database.events.stream(query=query)) == stored[:3]
    assert list(database.events.stream(query=query, newest_first=True)) == stored[2::-1]
    assert list(database.events.stream(query=query, limit=2)) == stored[:2]
    assert [conflict(database.events, AppendCondition(query, after)) for after in range(6)] == [1, 2, 3, *[None] * 3]


def test_an_item_without_arguments_matches_every_event(database: Database, read: None) -> None:
    stored = database.events.append_all(log_of_a_project())
    query = EventQuery.any_of(EventQuery(), EventQuery(thread_id=THREAD))
    assert list(database.events.stream(query=query)) == stored
    assert conflict(database.events, AppendCondition(query, after=4)) == 5


def test_queries_are_values() -> None:
    one, two, three = (EventQuery(thread_id=UUID(int=n)) for n in range(3))
    both = EventQuery.any_of(one, two)
    assert EventQuery.any_of(one) == EventQuery.any_of(one, one) == one
    assert EventQuery.any_of(both, three) == EventQuery.any_of(one, EventQuery.any_of(two, three))
    assert both == EventQuery.any_of(one, two) != EventQuery.any_of(two, three)
    copied = pickle.loads(pickle.dumps(both))  # noqa: S301
    assert (copied, hash(copied)) == (both, hash(both))
    assert EventQuery(tags={"type": "ThreadDeleted"}) == EventQuery(event_types=["ThreadDeleted"])
    assert EventQuery(tags={"a": ["x", "y"]}) == EventQuery(tags={"a": {"y", "x"}}) != EventQuery(tags={"a": ["x"]})
    assert EventQuery(tags={"a": ["x", "x"]}) == EventQuery(tags={"a": "x"})


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (lambda: EventQuery.any_of(), ValueError, "any_of takes at least one query"),
        (lambda: EventQuery.any_of([EventQuery()]), TypeError, "any_of takes queries, .* not list"),  # type: ignore[arg-type]
        (lambda: EventQuery(thread_id=THREAD, alternatives=(EventQuery(),)), ValueError, "nothing beside them"),
        (lambda: EventQuery(event_types=[]), ValueError, "event_types is empty"),
        (lambda: EventQuery(tags={"a": []}), ValueError, "no value was given for the tag a"),
        (lambda: EventQuery(tags={"a": [1.5]}), TypeError, "tag a is text, a number or a UUID"),
        (lambda: EventQuery(tags={"type": ["A", "B"]}), ValueError, "an event has one type"),
    ],
)
def test_a_wrong_query_is_refused(wrong: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        wrong()


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (EventQuery(event_types=["TurnStarted", "ThreadSelcted"]), "'ThreadSelcted' .* mean 'ThreadSelected'"),
        (EventQuery(event_types=["\ud83c"]), "is no event type of the codec"),
        (EventQuery(event_types=["TurnStarted"], project_id=PROJECT), "no event of type TurnStarted has project_id, "),
        (
            EventQuery(project_id=PROJECT, turn_id=TURN),
            "no event has project_id and turn_id, so none can match: .*any_of",
        ),
        (EventQuery(tags={"thread_id": [THREAD, OTHER]}), "no event has 2 values of thread_id"),
    ],
)
def test_a_query_that_can_match_nothing_is_refused(memory: Database, query: EventQuery, told: str) -> None:
    events = memory.events
    for refused in (query, EventQuery.any_of(EventQuery(thread_id=THREAD), query)):
        for ask in (
            lambda refused=refused: events.append_all([], condition=AppendCondition(refused, 0)),
            lambda refused=refused: events.stream(query=refused),
            lambda refused=refused: events.stream(query=refused, newest_first=True),
            lambda refused=refused: events.subscribe(query=refused),
            lambda refused=refused: events.durable_subscription("mailer", query=refused),
        ):
            with pytest.raises(ValueError, match=told):
                ask()


def test_a_misspelt_type_is_refused_without_a_query(memory: Database) -> None:
    for names in (["ThreadSelcted"], ["ThreadSelected", "ThreadSelcted"]):
        with pytest.raises(ValueError, match="did you mean 'ThreadSelected'"):
            memory.events.stream(event_types=names)


def test_subscriptions_follow_several_items(database: Database) -> None:
    database.events.append_all(log_of_a_project())
    query = EVERYTHING_OF_A_PROJECT
    with database.events.subscribe(query=query) as follower:
        assert [next(follower).sequence for _ in range(3)] == [1, 2, 3]
        database.events.append_all(log_of_a_project())
        assert [next(follower).sequence for _ in range(3)] == [6, 7, 8]
    for numbers in ([1, 2], [3, 6]):
        with database.events.durable_subscription("mailer", query=query) as subscription:
            for number in numbers:
                assert next(subscription).sequence == number
                subscription.save_position()


def test_a_query_of_several_items_works_in_an_event_loop(migrated_lasting_url: URL) -> None:
    query = EVERYTHING_OF_A_PROJECT

    async def work() -> None:
        async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
            stored = await database.events.append_all(log_of_a_project())
            assert [each async for each in database.events.stream(query=query)] == stored[:3]
            for number in (1, 2):
                async with database.events.durable_subscription("mailer", query=query) as subscription:
                    assert (await anext(subscription)).sequence == number
                    await subscription.save_position()
            async with database.events.subscribe(query=query, after=2) as follower:
                assert (await anext(follower)).sequence == 3
            with pytest.raises(ConcurrencyError):
                await database.events.append_all([], condition=AppendCondition(query, after=2))
            await database.events.append_all([], condition=AppendCondition(query, after=3))
            with pytest.raises(ValueError, match="did you mean"):
                database.events.stream(query=EventQuery(event_types=["TurnStart"]))

    asyncio.run(work())


def test_one_of_several_writers_wins_whichever_item_their_events_match(database: Database, read: None) -> None:
    threads, rounds = 4, 10
    together = threading.Barrier(threads)

    def work(number: int) -> int:
        wins = 0
        for turn in range(rounds):
            thread, other = UUID(int=turn), UUID(int=1_000 + turn)
            query = EventQuery.any_of(
                EventQuery(thread_id=thread, event_types=["ThreadDeleted"]), EventQuery(thread_id=other)
            )
            appended = ThreadDeleted(thread_id=thread) if number % 2 else ThreadSelected(thread_id=other)
            together.wait(PATIENCE)
            try:
                database.events.append_all([appended], condition=AppendCondition(query, after=0))
                wins += 1
            except ConcurrencyError:
                continue
        return wins

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, range(threads))) == rounds
    assert database.events.last_sequence() == rounds


class CountedReads:
    """Counts the reads of the index."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        self._engine = database.engine

    def _note(self, connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        self.count += "FROM event_tags" in statement

    def __enter__(self) -> "CountedReads":
        event.listen(self._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._note)


def test_an_item_of_few_events_is_not_read_again_for_each_page(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    monkeypatch.setattr(tag_index, "PAGE_MATCHES", 10)
    monkeypatch.setattr(tag_walk, "RANGE_ENTRIES", 50)
    few = TurnCompleted(turn_id=TURN, thread_id=OTHER)
    many: list[OrchestrationEvent] = [ThreadDeleted(thread_id=THREAD), ThreadSelected(thread_id=OTHER)] * 100
    database.events.append_all([few, *many, few, *many, few])
    dense = EventQuery(thread_id=THREAD)
    never = EventQuery(thread_id=THREAD, event_types=["ThreadSelected"])  # its two tags alternate
    query = EventQuery.any_of(EventQuery(turn_id=TURN), dense, never)
    assert len(list(database.events.stream(query=query))) == 203

    with CountedReads(database) as alone:
        list(database.events.stream(query=dense))
        list(database.events.stream(query=never))
    with CountedReads(database) as together:
        assert len(list(database.events.stream(query=query))) == 203
    assert together.count <= alone.count + 1
    with CountedReads(database) as first:
        assert conflict(database.events, AppendCondition(EventQuery.any_of(EventQuery(turn_id=TURN), dense), 1)) == 2
    assert first.count <= 2


def test_a_condition_of_many_items_does_not_hold_the_write_lock(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the lock, at most the first ranges are read; what was found outside is looked up by its number."""
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 20)
    under_lock: list[int] = []
    perform = tag_index.TagIndex.first_match

    def counted(self: tag_index.TagIndex, *arguments: Any, **options: Any) -> int | None:
        with CountedReads(database) as reads:
            try:
                return perform(self, *arguments, **options)
            finally:
                under_lock.append(reads.count)

    monkeypatch.setattr(tag_index.TagIndex, "first_match", counted)
    items = [EventQuery(thread_id=uuid4(), event_types=["ThreadSelected", "ThreadDeleted"]) for _ in range(300)]
    database.events.append_all([*padding(100), *[ThreadSelected(thread_id=item.thread_id) for item in items]])  # type: ignore[arg-type]
    late = EventQuery.any_of(*items)
    assert len(list(database.events.stream(query=late))) == 300
    assert conflict(database.events, AppendCondition(late, after=0)) == 101
    assert conflict(database.events, AppendCondition(late, after=250)) == 251
    assert conflict(database.events, AppendCondition(late, after=400)) is None
    assert max(under_lock) <= 3 * tag_index.LOCKED_ROUNDS
