"""Append conditions and reads by query: what matches, what conflicts, who wins."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from helpers.processes import PATIENCE, context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from sqlalchemy import URL, Connection, event, insert, text

from peon.orchestration import (
    OrchestrationEvent,
    ProjectCreated,
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
    EventCodec,
    EventQuery,
    EventStore,
    PersistenceError,
    ProjectionError,
    create_engine,
)
from peon.persistence.backends.engine import READ_ONLY
from peon.persistence.log import pages, tag_index
from peon.persistence.schema import events as log

DOCUMENTATION = Path(__file__).parents[3] / "docs"
PROJECT, THREAD, TURN, OTHER = (UUID(int=n) for n in range(1, 5))

MATCHES: list[tuple[EventQuery, OrchestrationEvent, bool]] = [
    (EventQuery(), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadDeleted"]), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadSelected", "ThreadDeleted"]), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(event_types=["ThreadSelected"]), ThreadDeleted(thread_id=THREAD), False),
    (EventQuery(event_types=[]), ThreadDeleted(thread_id=THREAD), False),
    (EventQuery(thread_id=THREAD), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(thread_id=str(THREAD).upper()), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(thread_id=OTHER), ThreadDeleted(thread_id=THREAD), False),
    (EventQuery(tags={"thread_id": THREAD}), ThreadDeleted(thread_id=THREAD), True),
    (EventQuery(project_id=PROJECT), ProjectRenamed(project_id=PROJECT, name=str(OTHER)), True),
    (EventQuery(project_id=OTHER), ProjectRenamed(project_id=PROJECT, name=str(OTHER)), False),
    (EventQuery(project_id=PROJECT), ThreadDeleted(thread_id=PROJECT), False),
    (EventQuery(turn_id=TURN, thread_id=THREAD), TurnStarted(turn_id=TURN, thread_id=THREAD), True),
    (EventQuery(turn_id=TURN, thread_id=OTHER), TurnStarted(turn_id=TURN, thread_id=THREAD), False),
    (
        EventQuery(event_types=["TurnCompleted"], turn_id=TURN),
        TurnStarted(turn_id=TURN, thread_id=THREAD),
        False,
    ),
]


@pytest.fixture(params=["from the log", "by the index"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ways in which a query finds its events."""
    if request.param == "by the index":
        monkeypatch.setattr(tag_index, "TAIL", 0)


def padding(count: int) -> list[OrchestrationEvent]:
    return [ThreadSelected(thread_id=UUID(int=100 + n)) for n in range(count)]


@pytest.mark.parametrize(("query", "stored", "matches"), MATCHES)
def test_a_condition_conflicts_with_what_matches(
    database: Database, read: None, query: EventQuery, stored: OrchestrationEvent, matches: bool
) -> None:
    before = database.events.append_all([stored])
    condition = AppendCondition(query, after=0)

    if not matches:
        assert database.events.append_all([stored], condition=condition)[0].sequence == 2
        assert list(database.events.stream(query=query)) == []
        return
    with pytest.raises(ConcurrencyError, match=r"event 1 matches .* up to 0") as caught:
        database.events.append_all([stored], condition=condition)
    assert (caught.value.sequence, caught.value.after) == (1, 0)
    assert database.events.replay_all() == before
    assert list(database.events.stream(query=query)) == before
    informed = AppendCondition(query, after=1)
    assert database.events.append_all([stored], condition=informed)[0].sequence == 2


def test_the_first_event_above_the_position_is_told(database: Database, read: None) -> None:
    database.events.append_all([ThreadDeleted(thread_id=thread) for thread in (THREAD, OTHER, THREAD, THREAD)])

    conditions = [AppendCondition(EventQuery(thread_id=THREAD), after) for after in (0, 1, 2, 3, 4, 2**63, 2**70)]
    assert [conflict(database.events, c) for c in conditions] == [1, 3, 3, 4, None, None, None]


def conflict(store: EventStore[OrchestrationEvent], condition: AppendCondition) -> int | None:
    try:
        store.append_all([], condition=condition)
    except ConcurrencyError as error:
        return error.sequence
    return None


def test_a_condition_holds_in_a_transaction_of_the_callers_own(database: Database, read: None) -> None:
    query = EventQuery(thread_id=THREAD)
    with database.engine.begin() as connection:
        database.events.append_all(padding(5), connection=connection)
        (stored,) = database.events.append_all(
            [ThreadDeleted(thread_id=THREAD)], condition=AppendCondition(query, 0), connection=connection
        )
        with pytest.raises(ConcurrencyError):
            database.events.append_all(
                [ThreadDeleted(thread_id=THREAD)], condition=AppendCondition(query, 0), connection=connection
            )
        database.events.append_all(padding(1), connection=connection)

    assert stored.sequence == 6
    assert database.events.last_sequence() == 7
    assert list(database.events.stream(query=query)) == [stored]


def test_much_that_is_not_indexed_yet_is_indexed_first(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL", 10)
    monkeypatch.setattr(tag_index, "PAGES_A_COMMIT", 1)
    database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(2_500)])
    by_turn, by_thread = EventQuery(turn_id=TURN), EventQuery(turn_id=TURN, thread_id=THREAD)
    for query in (by_turn, by_thread):  # the second finds one tag indexed, and one not
        with pytest.raises(ConcurrencyError) as caught:
            database.events.append_all(padding(1), condition=AppendCondition(query, 0))
        assert caught.value.sequence == 1
    (late,) = database.events.append_all([TurnCompleted(turn_id=TURN, thread_id=THREAD)])

    assert [s.sequence for s in database.events.stream(query=by_thread)] == [1, late.sequence]
    assert [s.sequence for s in database.events.stream(query=by_thread, after=1)] == [late.sequence]
    assert [s.sequence for s in database.events.stream(query=by_thread, limit=1)] == [1]
    indexed = rows(database, "SELECT name, sequence FROM tag_positions ORDER BY name")
    assert indexed == [("thread_id", 2_501), ("turn_id", 2_501)]


def test_few_events_that_are_large_are_indexed_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_rows_that_were_removed_by_hand_are_passed_over(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL", 0)
    monkeypatch.setattr(tag_index, "PAGE_MATCHES", 2)
    stored = database.events.append_all([ThreadDeleted(thread_id=THREAD) for _ in range(8)])
    query = EventQuery(thread_id=THREAD)
    assert list(database.events.stream(query=query)) == stored
    by_hand(database, "DELETE FROM events WHERE sequence IN (1, 2, 3, 6, 8)")

    assert [s.sequence for s in database.events.stream(query=query)] == [4, 5, 7]
    assert [conflict(database.events, AppendCondition(query, after)) for after in (0, 4, 5, 7)] == [4, 5, 7, None]


def test_tags_that_are_not_equally_far_are_indexed_though_the_last_row_was_removed(database: Database) -> None:
    database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(2)])
    index = database.events._reader._index
    with database.engine.begin() as connection:
        index.extend(connection, ["thread_id"])
    by_hand(database, "DELETE FROM events WHERE sequence = 3")
    with database.engine.begin() as connection:
        index.extend(connection, ["thread_id", "turn_id"])

    indexed = rows(database, "SELECT name, sequence FROM tag_positions ORDER BY name")
    assert indexed == [("thread_id", 3), ("turn_id", 3)]


def test_an_index_that_was_emptied_as_documented_is_filled_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL", 0)
    database.events.append_all([ThreadDeleted(thread_id=THREAD), ThreadDeleted(thread_id=THREAD)])
    query = EventQuery(thread_id=OTHER)
    assert list(database.events.stream(query=query)) == []
    by_hand(database, f"UPDATE events SET payload = replace(payload, '{THREAD}', '{OTHER}') WHERE sequence = 2")
    assert conflict(database.events, AppendCondition(query, after=0)) is None
    statements = re.findall("DELETE FROM [a-z_]+;", (DOCUMENTATION / "operations.md").read_text(encoding="utf-8"))
    assert len(statements) == 3
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)

    assert list(database.events.stream(query=query)) == database.events.replay_all()[1:]
    assert conflict(database.events, AppendCondition(query, after=0)) == 2


def test_threads_that_index_at_once_take_turns(
    lasting_url: URL, migrated_lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 4
    monkeypatch.setattr(pages, "PAGE_EVENTS", 10)
    monkeypatch.setattr(tag_index, "PAGES_A_COMMIT", 1)
    together = threading.Barrier(threads)
    with Database.open(url=lasting_url, projections=False) as database:
        database.events.append_all(padding(1_000))
        index = database.events._reader._index

        def work(_: int) -> None:
            together.wait(PATIENCE)
            index.catch_up(EventQuery(thread_id=THREAD))

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


LETTERS = st.sampled_from([UUID(int=n) for n in range(3)])
EVENTS = st.one_of(
    st.builds(ThreadDeleted, thread_id=LETTERS),
    st.builds(TurnStarted, turn_id=LETTERS, thread_id=LETTERS),
    st.builds(TurnCompleted, turn_id=LETTERS, thread_id=LETTERS),
    st.builds(ProjectRenamed, project_id=LETTERS, name=st.just("x")),
)
QUERIES = st.builds(
    EventQuery,
    event_types=st.none() | st.lists(st.sampled_from(["ThreadDeleted", "TurnStarted", "TurnCompleted"]), max_size=3),
    project_id=st.none() | LETTERS,
    thread_id=st.none() | LETTERS,
    turn_id=st.none() | LETTERS,
)


def is_match(query: EventQuery, stored: OrchestrationEvent) -> bool:
    identifiers = [(name, getattr(query, name)) for name in ("project_id", "thread_id", "turn_id")]
    of_type = query.event_types is None or stored.type in query.event_types
    return of_type and all(value is None or getattr(stored, name, None) == value for name, value in identifiers)


@pytest.fixture(scope="module")
def shared() -> Iterator[EventStore[OrchestrationEvent]]:
    with Database.open(url="sqlite://", projections=False) as database:
        yield database.events


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(EVENTS, max_size=12), query=QUERIES, back=st.integers(0, 40), tail=st.sampled_from([0, 5, 1_000]))
def test_index_and_log_agree_with_the_definition(
    shared: EventStore[OrchestrationEvent],
    monkeypatch: pytest.MonkeyPatch,
    batch: list[OrchestrationEvent],
    query: EventQuery,
    back: int,
    tail: int,
) -> None:
    shared.append_all(batch)
    after = max(0, shared.last_sequence() - back)
    expected = [s for s in shared.stream(after=after) if is_match(query, s.event)]

    with monkeypatch.context() as patched:
        patched.setattr(tag_index, "TAIL", tail)
        patched.setattr(tag_index, "PAGE_MATCHES", 2)
        patched.setattr(tag_index, "RANGE", 2)
        assert list(shared.stream(query=query, after=after)) == expected
        assert list(shared.stream(query=query, after=after, limit=3)) == expected[:3]
        assert conflict(shared, AppendCondition(query, after)) == next((s.sequence for s in expected), None)
        assert list(shared.stream(query=query, after=after)) == expected


class Deposited(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    account: str
    branch: int | None = None
    rate: float | None = None


class Opened(BaseModel):
    type: Literal["Opened"] = "Opened"
    account: str


AccountEvent = Annotated[Deposited | Opened, Field(discriminator="type")]
ACCOUNTS: EventCodec[Any] = EventCodec(AccountEvent, tags=["account", "branch"])


def test_a_custom_union_names_its_tags(database: Database, read: None) -> None:
    store = EventStore(database.engine, ACCOUNTS)
    names = ["7", "é\0", "x" * 3_000, "x" * 3_001, 'q"uote', ""]
    stored = [store.append_all([Deposited(account=name, branch=7)])[0] for name in names]
    opened = store.append_all([Opened(account="7")])

    for name, deposited in zip(names[1:], stored[1:], strict=True):
        assert list(store.stream(query=EventQuery(tags={"account": name}))) == [deposited]
    assert list(store.stream(query=EventQuery(tags={"account": 7}))) == [stored[0], *opened]
    assert list(store.stream(query=EventQuery(tags={"branch": 7, "account": "7"}))) == [stored[0]]
    assert list(store.stream(query=EventQuery(tags={"branch": 8}))) == []
    with pytest.raises(ConcurrencyError):
        store.append_all([Opened(account="7")], condition=AppendCondition(EventQuery(tags={"account": "7"}), 1))
    store.close()


class Posted(BaseModel):
    type: Literal["Posted"] = "Posted"
    thread_id: str


def test_an_identifier_in_a_field_of_text_is_the_same_in_any_form(database: Database, read: None) -> None:
    store = EventStore(database.engine, EventCodec(Posted, tags=["thread_id"]))
    thread = uuid4()
    forms = [thread.hex, str(thread), str(thread).upper()]
    stored = store.append_all([Posted(thread_id=form) for form in [*forms, "no UUID"]])

    for form in [*forms, thread]:
        for query in (EventQuery(thread_id=form), EventQuery(tags={"thread_id": form})):
            assert list(store.stream(query=query)) == stored[:3]
            with pytest.raises(ConcurrencyError):
                store.append_all([], condition=AppendCondition(query, after=2))
    assert list(store.stream(query=EventQuery(tags={"thread_id": "no UUID"}))) == stored[3:]
    store.close()


def test_rows_that_are_no_events_have_their_type_alone(database: Database, read: None) -> None:
    payloads = ["{", "[]", '{"thread_id": null}', f'{{"thread_id": {{"id": "{THREAD}"}}}}', '{"thread_id": true}']
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            [{"sequence": n, "event_type": "T", "payload": p, "stored_at": ""} for n, p in enumerate(payloads, 1)],
        )

    assert list(database.events.stream(query=EventQuery(thread_id=THREAD))) == []
    kept = database.events.stream(query=EventQuery(event_types=["T"]), undecodable="keep")
    assert [s.sequence for s in kept] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (lambda _: EventQuery(event_types="ThreadDeleted"), TypeError, "a list of names"),
        (lambda _: EventQuery(thread_id="a thread"), ValueError, "thread_id is a UUID"),
        (lambda _: EventQuery(tags={"thread_id": 1.5}), TypeError, "tag thread_id is text, a number or a UUID"),
        (lambda _: EventQuery(tags={"thread_id": True}), TypeError, "not bool"),
        (lambda _: EventQuery(tags=None), TypeError, "as a dictionary"),
        (lambda _: EventQuery(thread_id=THREAD, tags={"thread_id": OTHER}), ValueError, "given twice"),
        (lambda _: EventQuery(event_types=["A"], tags={"type": "B"}), ValueError, "type was given twice"),
        (lambda _: AppendCondition(EventQuery(), -1), ValueError, "from 0 on"),
        (lambda _: AppendCondition(EventQuery(), float("nan")), TypeError, "is a sequence"),
        (lambda d: d.events.stream(query="everything"), TypeError, "is an EventQuery"),
        (lambda d: d.events.stream(event_types=5), TypeError, "a list of names"),
        (lambda d: d.events.stream(limit=1.5), TypeError, "limit is a number"),
        (lambda _: AppendCondition("everything", 0), TypeError, "is an EventQuery"),
        (
            lambda d: d.events.stream(query=EventQuery(tags={"name": "x"})),
            ValueError,
            "name is not a tag",
        ),
        (lambda d: d.events.stream(query=EventQuery(), event_types=["T"]), ValueError, "name the types in the query"),
        (lambda d: d.events.append_all([], condition=EventQuery()), TypeError, "is an AppendCondition"),
        (lambda _: EventCodec(AccountEvent, tags="account"), TypeError, "a list of names"),
        (lambda _: EventCodec(AccountEvent, tags=["acount"]), ValueError, "'acount' is a field of no member"),
        (lambda _: EventCodec(AccountEvent, tags=["rate"]), ValueError, "'rate' is a field of neither text"),
    ],
)
def test_a_wrong_query_is_told(
    database: Database, wrong: Callable[[Database], object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        wrong(database)


def compete(barrier: Any, url: str, rounds: int, wins: Any) -> None:
    with Database.open(url=url, projections=False) as database:
        for turn in range(rounds):
            thread = UUID(int=turn)
            barrier.wait(PATIENCE)
            condition = AppendCondition(EventQuery(event_types=["ThreadDeleted"], thread_id=thread), after=0)
            try:
                database.events.append_all([ThreadDeleted(thread_id=thread)], condition=condition)
            except ConcurrencyError:
                continue
            with wins.get_lock():
                wins[turn] += 1


def test_of_many_processes_exactly_one_wins_each_round(lasting_url: URL, migrated_lasting: None) -> None:
    processes, rounds = 5, 25
    barrier, wins = context.Barrier(processes), context.Array("i", rounds)
    url = lasting_url.render_as_string(hide_password=False)
    competitors = [context.Process(target=compete, args=(barrier, url, rounds, wins)) for _ in range(processes)]
    for competitor in competitors:
        competitor.start()
    for competitor in competitors:
        competitor.join(PATIENCE)

    assert [competitor.exitcode for competitor in competitors] == [0] * processes
    assert list(wins) == [1] * rounds
    with Database.open(url=lasting_url, projections=False) as database:
        assert [s.event.thread_id.int for s in database.events.stream()] == list(range(rounds))  # type: ignore[union-attr]


@pytest.fixture
def migrated_lasting(lasting_url: URL) -> None:
    Database.open(url=lasting_url, projections=False).close()


def test_threads_that_share_commits_see_what_their_neighbours_stored(database: Database) -> None:
    threads, rounds = 8, 20
    together = threading.Barrier(threads)

    def work(_: int) -> int:
        wins = 0
        for turn in range(rounds):
            together.wait()
            condition = AppendCondition(EventQuery(thread_id=UUID(int=turn)), after=0)
            try:
                database.events.append_all([ThreadDeleted(thread_id=UUID(int=turn))], condition=condition)
                wins += 1
            except ConcurrencyError:
                database.events.append_all([ThreadSelected(thread_id=uuid4())])  # a neighbour without a condition
        return wins

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, range(threads))) == rounds
    assert database.events.last_sequence() == threads * rounds


def test_projections_refuse_a_conditional_append_and_leave_nothing(url: URL, migrated: None) -> None:
    with Database.open(url=url) as database:
        condition = AppendCondition(EventQuery(project_id=PROJECT), after=0)
        with pytest.raises(ProjectionError):
            database.events.append_all([ProjectRenamed(project_id=PROJECT, name="x")], condition=condition)
        created = ProjectCreated(project_id=PROJECT, name="x", path="/")
        assert database.events.append_all([created], condition=condition)[0].sequence == 1
        assert database.projections.verify() == []


@contextmanager
def statements_of_the_index(database: Database) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "event_tags" in statement:
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("backend", ["sqlite_url", "postgresql_url"])
def test_queries_are_ranges_of_the_index(request: pytest.FixtureRequest, backend: str, analyzed: bool) -> None:
    """What a planner thinks of the tags, or does not know, makes none of them a sort of all that is left of one."""
    url: URL = request.getfixturevalue(backend)
    with Database.open(url=url, projections=False) as database:
        database.events.append_all([*padding(4_000), *(TurnStarted(turn_id=TURN, thread_id=uuid4()) for _ in range(5))])
        query = EventQuery(event_types=["ThreadSelected", "TurnStarted"])
        both = EventQuery(event_types=["TurnStarted"], turn_id=TURN)
        assert len(list(database.events.stream(query=query))) == 4_005
        assert len(list(database.events.stream(query=both))) == 5
        with database.engine.connect() as connection:
            if analyzed:
                connection.exec_driver_sql("ANALYZE")
                connection.commit()
            with statements_of_the_index(database) as statements:
                list(database.events.stream(query=query))
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
    monkeypatch.setattr(tag_index, "TAIL", 0)
    monkeypatch.setattr(tag_index, "RANGE", 10)
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


def test_much_of_the_index_is_not_read_under_the_lock(
    lasting_url: URL, migrated_lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tags that take turns and never meet are the worst there is."""
    for name, value in {"TAIL": 10, "RANGE": 5, "ROUNDS": 3}.items():
        monkeypatch.setattr(tag_index, name, value)
    under_lock: list[str] = []

    def note(connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        options = connection.get_execution_options()
        reads = READ_ONLY in options or options.get("isolation_level") == "REPEATABLE READ"
        if "event_tags" in statement and not reads:
            under_lock.append(statement)

    turns = [ThreadDeleted(thread_id=THREAD), ThreadSelected(thread_id=OTHER)] * 100
    query = EventQuery(event_types=["ThreadSelected"], thread_id=THREAD)
    with Database.open(url=lasting_url, projections=False) as database:
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
        with database.engine.begin() as connection:  # whose owner waits for it
            database.events.append_all([], condition=AppendCondition(query, found.sequence), connection=connection)
        assert len(under_lock) > 40


def test_a_file_that_may_only_be_read_is_read_without_an_index(sqlite_url: URL, tmp_path: Any) -> None:
    with Database.open(url=sqlite_url, projections=False) as database:
        database.events.append_all([TurnStarted(turn_id=TURN, thread_id=THREAD), *padding(3_000)])
    engine = create_engine(f"sqlite:///file:{sqlite_url.database}?mode=ro&uri=true")
    store = EventStore(engine)
    assert [s.sequence for s in store.stream(query=EventQuery(turn_id=TURN))] == [1]
    engine.dispose()


def test_large_events_are_all_found(database: Database, read: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CHARACTERS", 10_000)
    for number in range(30):
        database.events.append_all([ProjectRenamed(project_id=PROJECT, name=f"{number} " + "x" * 1_000), *padding(2)])
    query = EventQuery(project_id=PROJECT)
    assert list(database.events.stream(query=query)) == database.events.replay_all()[::3]
    with database.events.subscribe(query=query) as subscription:
        assert [next(subscription).sequence for _ in range(30)] == [*range(1, 91, 3)]


def test_a_condition_is_decided_although_others_always_append_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL", 3)
    monkeypatch.setattr(tag_index.TagIndex, "catch_up", lambda *_, **__: database.events.append_all(padding(10)))
    condition = AppendCondition(EventQuery(thread_id=THREAD), after=0)

    database.events.append_all(padding(10))
    assert database.events.append_all([ThreadDeleted(thread_id=THREAD)], condition=condition)[0].sequence == 21
    with pytest.raises(ConcurrencyError):
        database.events.append_all([ThreadDeleted(thread_id=THREAD)], condition=condition)


def test_a_read_does_not_wait_for_the_lock_that_its_index_needs(
    lasting_url: URL, migrated_lasting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "TAIL", 3)
    query = EventQuery(thread_id=THREAD)
    with Database.open(url=lasting_url, projections=False) as database:
        database.events.append_all([*padding(10), ThreadDeleted(thread_id=THREAD)])
        with database.engine.begin() as connection:
            database.events.append_all([], condition=AppendCondition(query, after=11), connection=connection)
            database.settings.set("held", True, connection=connection)  # the lock of SQLite, and the index
            database.events._reader._index.extend(connection, ["thread_id"])
            assert [stored.sequence for stored in database.events.stream(query=query)] == [11]


class Colour(str, Enum):  # noqa: UP042 - its str() is not its value
    RED = "red"


class Painted(BaseModel):
    type: Literal["Painted"] = "Painted"
    colour: Colour


def test_a_query_is_what_it_was_made_of(database: Database, read: None) -> None:
    wanted = ["ThreadDeleted"]
    generated = EventQuery(event_types=(name for name in wanted))
    listed = EventQuery(event_types=wanted)
    values = {"thread_id": THREAD}
    tagged = EventQuery(tags=values)
    wanted.clear()
    values.clear()
    database.events.append_all([ThreadDeleted(thread_id=THREAD)])

    for query in (generated, listed, tagged):
        for _ in range(2):
            assert conflict(database.events, AppendCondition(query, after=0)) == 1
        assert hash(query) == hash(EventQuery(event_types=query.event_types, tags=query.tags))
    assert len(list(database.events.stream(event_types=iter(["ThreadDeleted"])))) == 1


def test_a_member_of_an_enumeration_stands_for_its_value(database: Database, read: None) -> None:
    codec: EventCodec[Painted] = EventCodec(Painted, tags=["colour"])
    store = EventStore(database.engine, codec)
    store.append_all([Painted(colour=Colour.RED)])
    for value in (Colour.RED, "red"):
        with pytest.raises(ConcurrencyError):
            store.append_all([], condition=AppendCondition(EventQuery(tags={"colour": value}), after=0))
    store.append_all([], condition=AppendCondition(EventQuery(tags={"colour": "\ud800"}), after=0))
    store.close()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_condition_alone_is_refused_where_it_cannot_be_seen(migrated_postgresql_url: URL, level: Any) -> None:
    with (
        Database.open(url=migrated_postgresql_url, projections=False) as database,
        database.engine.connect().execution_options(isolation_level=level) as connection,
    ):
        connection.execute(text("SELECT 1 FROM events"))
        database.events.append_all([ThreadDeleted(thread_id=THREAD)])
        with pytest.raises(PersistenceError, match="READ COMMITTED"):
            database.events.append_all([], condition=AppendCondition(EventQuery(), after=0), connection=connection)


def test_a_connection_of_elsewhere_is_refused(database: Database) -> None:
    with Database.open(url="sqlite://", projections=False) as other:
        with other.engine.connect() as connection:
            with pytest.raises(ValueError, match="of another database"):
                database.events.append_all([ThreadDeleted(thread_id=THREAD)], connection=connection)
            with pytest.raises(ValueError, match="of another database"):
                database.settings.set("a", 1, connection=connection)
        assert other.events.replay_all() == []
    for wrong in (5, database.engine):
        with pytest.raises(TypeError, match="connection is one of SQLAlchemy's engine"):
            database.events.append_all([ThreadDeleted(thread_id=THREAD)], connection=wrong)  # type: ignore[arg-type]
