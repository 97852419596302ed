"""One log with the domain's events and an application's own: one order, one transaction, both kinds of projections."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers.orchestration_scene import (
    OTHER_THREAD,
    SCENE,
    THREAD,
    UNKNOWN,
    Opener,
    add_row,
    found,
    renamed,
)
from helpers.own_events import AppEvent, Noted, Notes, codec, noted, notes
from helpers.reference_model import ReferenceModel
from helpers.tide_events import StationClosed
from sqlalchemy import URL, select

from peon import AsyncDatabase, AsyncEventStore, UndecodableEvent
from peon.orchestration import OrchestrationEvent, ProjectRenamed, event_type_name
from peon.persistence import (
    AppendCondition,
    ConcurrencyError,
    Database,
    EventCodec,
    EventDecodeError,
    EventEncodeError,
    EventQuery,
    EventStore,
    Problem,
    ProjectionError,
    create_engine,
)
from peon.persistence.log.codec import UNKNOWN_TYPE

OPTIONS: dict[str, Any] = {"codec": codec, "projections": [Notes()]}
BATCH = [*SCENE[:4], noted(), *SCENE[4:], noted("grace", OTHER_THREAD), renamed("Tides"), noted("ada")]


@pytest.fixture
def database(open_empty: Opener) -> Database[AppEvent]:
    return open_empty(**OPTIONS)


def rows(database: Database[Any]) -> list[tuple[Any, ...]]:
    with database.read_transaction() as connection:
        return [tuple(row) for row in connection.execute(select(notes).order_by(notes.c.thread_id))]


def own_alone(database: Database[Any], *events: AppEvent) -> None:
    """Stores events without updating projections."""
    alone = EventStore(database.engine, codec)
    alone.append_all(events)
    alone.close()


def assert_both_follow(database: Database[Any], events: list[AppEvent]) -> None:
    """Checks that each projection holds what a log with these events says, and knows it."""
    model = ReferenceModel()
    for event in events:
        if isinstance(event, Noted):
            model.sequence += 1
        else:
            assert model.follow(event) is None
    assert found(database) == model.state()
    places = [(at, event) for at, event in enumerate(events, 1) if isinstance(event, Noted)]
    assert rows(database) == [
        (str(each), len(own), own[-1] if own else None)
        for each in (THREAD, OTHER_THREAD)
        for own in [[at for at, event in places if event.thread_id == each]]
    ]
    assert database.projections.problems() == database.projections.verify() == []
    assert database.projections.position() == database.events.last_sequence() == len(events)


class TestOneLog:
    def test_an_append_updates_both_projections_in_its_transaction(self, database: Database[AppEvent]) -> None:
        stored = database.events.append_all(BATCH)
        assert [each.sequence for each in stored] == [*range(1, len(BATCH) + 1)]
        assert database.events.replay_all() == stored
        assert [event for _, event, _ in stored] == BATCH
        assert_both_follow(database, BATCH)

        with database.engine.connect() as connection:
            database.events.append_all([noted(), renamed("never")], connection=connection)
            connection.rollback()
        for refused, index in (([noted(), renamed("x", UNKNOWN)], 1), ([renamed("x"), noted(""), noted()], 1)):
            with pytest.raises(ProjectionError) as caught:
                database.events.append_all(refused)
            assert (caught.value.index, caught.value.event_type) == (index, event_type_name(refused[index]))
        assert_both_follow(database, BATCH)

    @pytest.mark.usefixtures("small_pages")
    @pytest.mark.parametrize("bring_up_to_date", ["catch_up", "rebuild", "append"])
    def test_a_replay_applies_what_an_append_does(self, database: Database[AppEvent], bring_up_to_date: str) -> None:
        own_alone(database, *BATCH)
        events = [*BATCH]
        if bring_up_to_date == "append":
            events += [noted("grace"), renamed("next")]
            database.events.append_all(events[-2:])
        else:
            getattr(database.projections, bring_up_to_date)()

        assert_both_follow(database, events)

    def test_a_subscription_yields_both_in_order(self, database: Database[AppEvent]) -> None:
        database.events.append_all(BATCH)
        with database.events.subscribe(after=2) as subscription:
            assert [next(subscription).event for _ in BATCH[2:]] == BATCH[2:]

    def test_queries_and_conditions_use_the_tags_of_both(self, database: Database[AppEvent]) -> None:
        database.events.append_all(BATCH)

        def matching(query: EventQuery) -> list[AppEvent]:
            return [event for _, event, _ in database.events.stream(query=query)]

        of_thread = EventQuery(thread_id=OTHER_THREAD)
        assert matching(of_thread) == [each for each in BATCH if getattr(each, "thread_id", None) == OTHER_THREAD]
        assert BATCH[-3] in matching(of_thread)
        by_ada = EventQuery(tags={"author": "ada"})
        assert matching(by_ada) == [BATCH[4], BATCH[-1]]
        with pytest.raises(ConcurrencyError):
            database.events.append_all([renamed("x")], condition=AppendCondition(by_ada, after=len(BATCH) - 1))
        database.events.append_all([renamed("x")], condition=AppendCondition(by_ada, after=len(BATCH)))
        with pytest.raises(ValueError, match="weight is not a tag of these events; the codec names author, project_id"):
            database.events.stream(query=EventQuery(tags={"weight": 1}))

    def test_an_unknown_type_is_a_problem_of_both_projections(self, database: Database[AppEvent]) -> None:
        own_alone(database, *BATCH)
        sequence = add_row(database, "StationClosed", '{"type":"StationClosed","station":"Hel"}')
        own_alone(database, renamed("after"), noted())
        problems = [Problem(name, sequence, "StationClosed", UNKNOWN_TYPE) for name in ("orchestration", "notes")]

        for bring_up_to_date in (database.projections.catch_up, database.projections.rebuild):
            bring_up_to_date()
            assert database.projections.problems() == problems
            assert {each.table for each in database.projections.verify()} == {"projection_problems"}
            assert database.read_model.projects()[0].name == "after"
            assert rows(database)[0] == (str(THREAD), 3, sequence + 2)

    def test_an_event_that_could_not_be_read_back_is_refused(self, database: Database[AppEvent]) -> None:
        tampered = renamed("x").model_copy(update={"name": 7})
        for unreadable in (tampered, noted().model_copy(update={"weight": float("nan")}), StationClosed(station="Hel")):
            with pytest.raises(EventEncodeError) as caught:
                database.events.append_all([noted(), unreadable])  # type: ignore[list-item]
            assert caught.value.index == 1
        assert database.events.last_sequence() == 0


class TestAsynchronously:
    @staticmethod
    def tell(url: URL, story: Callable[[AsyncDatabase[AppEvent]], Awaitable[None]]) -> None:
        async def with_database() -> None:
            async with asyncio.timeout(30), await AsyncDatabase.open(url=url, **OPTIONS) as database:
                await story(database)

        asyncio.run(with_database())

    def test_the_same_log(self, url: URL, migrated: None) -> None:
        async def story(database: AsyncDatabase[AppEvent]) -> None:
            stored = await database.events.append_all(BATCH)
            assert await database.events.replay_all() == stored
            async with database.events.subscribe(after=4) as subscription:
                assert (await anext(subscription)).event == BATCH[4]
            query = EventQuery(thread_id=THREAD, tags={"author": "ada"})
            assert [each.sequence async for each in database.events.stream(query=query)] == [5, len(BATCH)]
            with pytest.raises(ProjectionError):
                await database.events.append_all([noted(), renamed("x", UNKNOWN)])
            with pytest.raises(EventEncodeError):
                await database.events.append_all([noted().model_copy(update={"weight": float("nan")})])
            assert (await database.read_model.projects())[0].name == "Tides"

            alone = AsyncEventStore(database.engine, codec)
            await alone.append_all([noted("grace"), renamed("after")])
            await alone.close()
            for bring_up_to_date in (database.projections.catch_up, database.projections.rebuild):
                await bring_up_to_date()
                assert await database.projections.problems() == await database.projections.verify() == []
                async with database.read_transaction() as connection:
                    counted = select(notes.c.notes).where(notes.c.thread_id == str(THREAD))
                    assert await connection.scalar(counted) == 3

        self.tell(url, story)


class TestWithoutTheCodec:
    """A database that was opened with a codec of the application's own is later opened without it."""

    def test_nothing_is_lost(self, open_lasting: Opener) -> None:
        database = open_lasting(**OPTIONS)
        database.events.append_all(BATCH)
        own = [at for at, event in enumerate(BATCH, 1) if isinstance(event, Noted)]

        with Database.open(url=database.engine.url) as without:
            assert without.projections.problems() == []  # the projection has applied these events
            with pytest.raises(EventDecodeError, match=r"event 5 \(Noted\) cannot be decoded: no event of this type"):
                without.events.replay_all()
            read = without.events.replay_all(undecodable=UndecodableEvent)
            assert [at for at, event, _ in read if isinstance(event, UndecodableEvent)] == own
            without.events.append_all([renamed("without")])
            assert without.read_model.projects()[0].name == "without"
            assert [each[:3] for each in without.projections.verify()] == [
                ("projection_problems", f"orchestration/{at}", "reason") for at in own
            ]

        with Database.open(url=database.engine.url, **OPTIONS) as again:
            assert_both_follow(again, [*BATCH, renamed("without")])

    def test_what_was_passed_over_is_applied_when_it_is_opened_with_the_codec_again(
        self, open_lasting: Opener, caplog: pytest.LogCaptureFixture
    ) -> None:
        database = open_lasting(**OPTIONS)
        own_alone(database, *BATCH)
        own = [at for at, event in enumerate(BATCH, 1) if isinstance(event, Noted)]

        with Database.open(url=database.engine.url, projections=[Notes()]) as without:
            assert without.projections.problems() == [
                Problem(name, at, "Noted", UNKNOWN_TYPE) for name in ("orchestration", "notes") for at in own
            ]
            assert [row[1] for row in rows(without)] == [0, 0]
            without.projections.catch_up()
            assert len(without.projections.problems()) == 2 * len(own)

        with caplog.at_level(logging.INFO, "peon"), Database.open(url=database.engine.url, **OPTIONS) as again:
            assert_both_follow(again, BATCH)
            reason = "it has passed over events of type Noted, which is known now"
            reasons = [getattr(record, "peon_reason", None) for record in caplog.records]
            assert [each for each in reasons if each is not None] == [reason, reason]
            caplog.clear()
            again.projections.catch_up()
            assert caplog.records == []


class TestRefusals:
    def test_a_codec_without_every_event_of_the_domain(self, migrated_sqlite_url: URL) -> None:
        for lacking in (EventCodec(Noted), EventCodec(ProjectRenamed | Noted)):
            with pytest.raises(ValueError, match="must have every event of the domain, and this one lacks ActionA"):
                Database.open(url=migrated_sqlite_url, codec=lacking)
            with pytest.raises(ValueError, match="the union of OrchestrationEvent and your own events"):
                asyncio.run(AsyncDatabase.open(url=migrated_sqlite_url, codec=lacking))

    def test_a_union_in_the_place_of_its_codec(self) -> None:
        with pytest.raises(TypeError, match="codec takes an EventCodec of a union of events"):
            Database.open(url="sqlite://", codec=AppEvent)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="codec takes an EventCodec of a union of events"):
            EventStore(create_engine("sqlite://"), OrchestrationEvent | Noted)  # type: ignore[arg-type]
