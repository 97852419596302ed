"""Two versions of an application at one database: the older one never undoes what the newer one has built."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.orchestration_scene import (
    NEW,
    PROJECT,
    SCENE,
    UNKNOWN,
    Opener,
    another,
    append_alone,
    change,
    found,
    project,
    renamed,
    rows_of_all_tables,
    told,
)
from helpers.word_count_projection import WordCount
from sqlalchemy import Column, Connection, MetaData, Table, Text, update

from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import (
    Database,
    EventStore,
    Projection,
    ProjectionsTooNew,
    Refusal,
    schema,
)
from peon.persistence.asynchronous import AsyncDatabase, create_async_engine
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.projections import Projections

OLD = OrchestrationProjection.version


class Newer(OrchestrationProjection):
    version = OLD + 1


class NewerWordCount(WordCount):
    version = 2


def newer(database: Database) -> Projections:
    return Projections(database.engine, [Newer()], orchestration_codec)


def refused(error: pytest.ExceptionInfo[ProjectionsTooNew]) -> tuple[str, int, int]:
    for version in (error.value.found, error.value.expected):
        assert f"version {version}" in str(error.value)
    return error.value.projection, error.value.found, error.value.expected


class TestOlderVersion:
    @pytest.mark.parametrize("attempt", [lambda old: old.catch_up(), lambda old: old.rebuild()])
    def test_does_not_rebuild_what_a_newer_one_has_built(
        self, database: Database, attempt: Callable[[Projections], None]
    ) -> None:
        database.events.append_all(SCENE)
        newer(database).catch_up()
        append_alone(database, renamed("x"))
        before = rows_of_all_tables(database)

        with pytest.raises(ProjectionsTooNew) as caught:
            attempt(database.projections)

        assert refused(caught) == ("orchestration", OLD + 1, OLD)
        assert rows_of_all_tables(database) == before

    def test_does_not_open_the_database(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        newer(database).catch_up()

        with pytest.raises(ProjectionsTooNew) as caught, another(database):
            pass
        assert refused(caught) == ("orchestration", OLD + 1, OLD)

        async def open_for_an_event_loop() -> None:
            async with await AsyncDatabase.open(url=database.engine.url):
                pass

        with pytest.raises(ProjectionsTooNew) as caught:
            asyncio.run(open_for_an_event_loop())
        assert refused(caught) == ("orchestration", OLD + 1, OLD)

    def test_leaves_the_projection_alone_when_it_appends(self, database: Database) -> None:
        database.events.append_all(SCENE)
        newer(database).catch_up()
        before = rows_of_all_tables(database)

        for name in ("x", "y"):
            database.events.append_all([renamed(name)])

        assert database.events.last_sequence() == len(SCENE) + 2
        assert {**rows_of_all_tables(database), "events": []} == {**before, "events": []}
        assert found(database) == told(*SCENE).state()

    def test_leaves_the_projection_alone_when_it_appends_in_an_event_loop(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        newer(database).catch_up()

        async def append() -> None:
            async with AsyncDatabase(create_async_engine(database.engine.url)) as old:
                await old.events.append_all([renamed("x")])
                assert await old.projections.position() == len(SCENE)

        asyncio.run(append())
        assert database.events.last_sequence() == len(SCENE) + 1
        assert found(database) == told(*SCENE).state()

    def test_refuses_no_event_that_contradicts_the_newer_projection(self, database: Database) -> None:
        database.events.append_all(SCENE)
        newer(database).catch_up()

        database.events.append_all([renamed("x", UNKNOWN)])

        newer(database).catch_up()
        assert [problem.sequence for problem in newer(database).problems()] == [len(SCENE) + 1]

    @pytest.mark.parametrize("appends", [True, False], ids=["appends", "catches up"])
    def test_has_its_events_applied_when_the_newer_one(self, open_lasting: Opener, appends: bool) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        newer(database).catch_up()
        appended: list[OrchestrationEvent] = [renamed("older")]
        database.events.append_all(appended)

        if appends:
            appended.append(project(NEW))
            store: EventStore[Any] = EventStore(database.engine, on_append=newer(database).apply)
            store.append_all(appended[-1:])
            store.close()
        else:
            newer(database).catch_up()

        assert found(database) == told(*SCENE, *appended).state()
        assert newer(database).verify() == []

    def test_keeps_its_other_projections_up_to_date(self, open_empty: Opener) -> None:
        database = open_empty(projections=[WordCount()])
        database.events.append_all(SCENE)
        Projections(database.engine, [NewerWordCount()], orchestration_codec).catch_up()

        database.events.append_all([renamed("x")])

        positions = {name: sequence for name, _, sequence in rows_of_all_tables(database)["projection_positions"]}
        assert positions == {"orchestration": len(SCENE) + 1, "word_count": len(SCENE)}
        project_of_scene = database.read_model.project(PROJECT)
        assert project_of_scene is not None
        assert project_of_scene.name == "x"

    @pytest.mark.usefixtures("small_pages")
    def test_goes_on_in_full_while_the_newer_one_is_built(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        appended: list[ProjectRenamed] = []

        with another(database) as building:

            def append(*_: int) -> None:
                if len(appended) < 3:
                    appended.append(renamed(f"older {len(appended)}"))
                    database.events.append_all(appended[-1:])
                    assert found(database) == told(*SCENE, *appended).state()

            newer(building).catch_up(append)

        assert len(appended) == 3
        assert found(database) == told(*SCENE, *appended).state()
        assert newer(database).verify() == []

    def test_rebuilds_no_other_projection_either(self, open_empty: Opener) -> None:
        database = open_empty(projections=[WordCount()])
        database.events.append_all(SCENE[:2])
        Projections(database.engine, [NewerWordCount()], orchestration_codec).catch_up()
        change(database, update(schema.projection_positions).where(_is_of_the_domain).values(version=0))
        before = rows_of_all_tables(database)

        for attempt in (database.projections.catch_up, database.projections.rebuild):
            with pytest.raises(ProjectionsTooNew) as caught:
                attempt()
            assert refused(caught) == ("word_count", 2, 1)
        assert rows_of_all_tables(database) == before

    @pytest.mark.usefixtures("small_pages")
    @pytest.mark.parametrize("attempt", [lambda old, report: old.catch_up(report), lambda old, r: old.rebuild(r)])
    def test_notices_a_newer_one_that_comes_meanwhile(
        self, open_lasting: Opener, attempt: Callable[[Projections, Callable[[int, int], None]], None]
    ) -> None:
        database = open_lasting()
        append_alone(database, *SCENE)
        reported: list[int] = []

        def overtake(done: int, _: int) -> None:
            reported.append(done)
            if len(reported) == 1:
                newer(database).catch_up()
                append_alone(database, project(NEW))

        with pytest.raises(ProjectionsTooNew):
            attempt(database.projections, overtake)

        ((_, version, _),) = rows_of_all_tables(database)["projection_positions"]
        assert version == Newer.version
        newer(database).catch_up()
        assert newer(database).verify() == []

    def test_can_still_read_and_verify(self, database: Database) -> None:
        database.events.append_all(SCENE)
        newer(database).catch_up()

        assert found(database) == told(*SCENE).state()
        (difference,) = database.projections.verify()
        assert difference == ("projection_positions", "orchestration", "version", OLD, OLD + 1)

    def test_goes_back_on_purpose(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        newer(database).catch_up()

        with another(database, maintain_projections=False) as old:
            old.projections.rebuild(replace_newer=True)

        with another(database) as old:
            old.events.append_all([renamed("x")])
            assert old.projections.verify() == []

    def test_goes_back_on_purpose_in_an_event_loop(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        newer(database).catch_up()

        async def go_back() -> None:
            old = AsyncDatabase(create_async_engine(database.engine.url), maintain_projections=False)
            async with old:
                with pytest.raises(ProjectionsTooNew):
                    await old.projections.rebuild()
                await old.projections.rebuild(replace_newer=True)
                assert await old.projections.verify() == []

        asyncio.run(go_back())


_is_of_the_domain = schema.projection_positions.c.name == "orchestration"


class TestLog:
    def test_says_when_a_rebuild_begins_and_why(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "peon")
        database.events.append_all(SCENE)
        assert not [record for record in caplog.records if "rebuild" in record.getMessage()]

        newer(database).catch_up()
        record, end = caplog.records
        assert end.getMessage().startswith("rebuilt projection orchestration")
        assert "rebuilding projection orchestration" in record.getMessage()
        assert f"version {OLD} has built it, and the present version is {OLD + 1}" in record.getMessage()

        caplog.clear()
        newer(database).rebuild()
        record, _ = caplog.records
        assert record.getMessage().endswith("rebuild() was called")


def test_both_versions_of_a_projection_of_ones_own(open_lasting: Opener) -> None:
    def opened(projection: Projection) -> None:
        with another(database, projections=[projection]) as each:
            assert each.projections.verify() == []

    database = open_lasting(projections=[WordCount()])
    database.events.append_all(SCENE[:1])

    opened(NewerWordCount())
    with pytest.raises(ProjectionsTooNew, match="word_count"):
        opened(WordCount())
    opened(NewerWordCount())


def test_another_shape_in_another_version_is_no_damage(open_lasting: Opener, caplog: pytest.LogCaptureFixture) -> None:
    class WithAnotherColumn(NewerWordCount):
        tables = (Table("word_count_words", MetaData(), Column("thread_id", Text, primary_key=True)),)

        def apply(self, connection: Connection, events: object) -> Iterator[Refusal]:
            return iter(())

    database = open_lasting(projections=[WordCount()])
    caplog.set_level(logging.INFO, "peon")

    with another(database, projections=[WithAnotherColumn()]) as opened:
        assert opened.projections.verify() == []
    assert {record.levelname for record in caplog.records} == {"INFO"}
