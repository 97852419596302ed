"""Projections stay up to date with the log: in each append, at start-up, and after gaps."""

from collections.abc import Iterator

import pytest
from helpers import processes, projection_processes
from helpers.agent_session import long_session
from helpers.orchestration_scene import (
    PROJECT,
    SCENE,
    THREAD,
    UNKNOWN,
    Opener,
    add_row,
    another,
    append_alone,
    change,
    found,
    project,
    renamed,
    rows_of_all_tables,
    thread,
    told,
)
from helpers.reference_model import ReferenceModel, state_of
from sqlalchemy import delete, select, update

from peon.persistence import Database, ProjectionError, ProjectionsOutOfDate, schema
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.projections import Projections

pytestmark = pytest.mark.postgresql_too("locks, and what concurrent transactions see")


class TestPosition:
    def test_moves_with_each_append(self, database: Database) -> None:
        assert database.projections.position() == 0
        for batch in ([project(PROJECT)], SCENE[1:5], [renamed("x")]):
            database.events.append_all(batch)
            assert database.projections.position() == database.events.last_sequence()

        assert rows_of_all_tables(database)["projection_positions"] == [
            ("orchestration", OrchestrationProjection.version, 6)
        ]

    def test_equals_the_position_of_the_snapshot(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x"))

        assert database.projections.position() == database.read_model.snapshot().sequence == len(SCENE)


class TestJoiningATransaction:
    def test_the_caller_commits(self, database: Database) -> None:
        with database.engine.begin() as connection:
            database.events.append_all(SCENE[:10], connection=connection)
            database.events.append_all(SCENE[10:], connection=connection)
            assert len(connection.execute(select(schema.projection_threads)).all()) == 2

        assert found(database) == told(*SCENE).state()
        assert database.projections.position() == len(SCENE)

    def test_rollback_undoes_rows_and_position(self, database: Database) -> None:
        database.events.append_all(SCENE[:3])
        before = rows_of_all_tables(database)
        with database.engine.connect() as connection:
            database.events.append_all(SCENE[3:], connection=connection)
            connection.rollback()

        assert rows_of_all_tables(database) == before
        database.events.append_all(SCENE[3:])
        assert found(database) == told(*SCENE).state()

    def test_a_refused_append_changes_nothing_in_the_transaction(self, database: Database) -> None:
        with database.engine.begin() as connection:
            database.events.append_all(SCENE[:3], connection=connection)
            with pytest.raises(ProjectionError):
                database.events.append_all([*SCENE[3:], thread(THREAD)], connection=connection)
            database.events.append_all([renamed("x")], connection=connection)

        assert found(database) == told(*SCENE[:3], renamed("x")).state() | {
            "projects": found(database)["projects"],
            "snapshot": database.read_model.snapshot(),
        }
        assert database.read_model.snapshot().sequence == database.projections.position() == 4
        assert database.projections.verify() == []

    def test_an_append_closes_a_gap_in_the_transaction(self, database: Database) -> None:
        append_alone(database, *SCENE[:6])
        with database.engine.connect() as connection:
            database.events.append_all(SCENE[6:], connection=connection)
            connection.rollback()
        assert database.projections.position() == 0

        with database.engine.begin() as connection:
            database.events.append_all(SCENE[6:], connection=connection)

        assert found(database) == told(*SCENE).state()


@pytest.mark.usefixtures("small_pages")
class TestGaps:
    def test_the_next_append_closes_a_gap(self, database: Database) -> None:
        database.events.append_all(SCENE[:2])
        append_alone(database, *SCENE[2:16])
        assert database.projections.position() == 2

        database.events.append_all(SCENE[16:])

        assert found(database) == told(*SCENE).state()
        assert database.projections.position() == len(SCENE)
        assert database.projections.verify() == []

    def test_a_contradictory_event_in_a_gap_becomes_a_problem_and_blocks_no_append(self, database: Database) -> None:
        database.events.append_all(SCENE[:3])
        append_alone(database, thread(THREAD), renamed("x", UNKNOWN), renamed("stored"))
        undecodable = add_row(database, "Unheard", "{}")

        database.events.append_all([renamed("appended")])

        problems = database.projections.problems()
        assert [(problem.sequence, problem.event_type) for problem in problems] == [
            (4, "ThreadCreated"),
            (5, "ProjectRenamed"),
            (undecodable, "Unheard"),
        ]
        assert database.read_model.project(PROJECT).name == "appended"  # type: ignore[union-attr]

    def test_a_refused_append_leaves_a_gap_open(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        before = rows_of_all_tables(database)

        with pytest.raises(ProjectionError) as caught:
            database.events.append_all([renamed("a"), thread(THREAD)])
        assert (caught.value.index, caught.value.event_type) == (1, "ThreadCreated")
        assert rows_of_all_tables(database) == before

        database.events.append_all([renamed("a")])
        assert [problem.sequence for problem in database.projections.problems()] == [len(SCENE) + 1]

    def test_two_open_databases_append_alternately(self, open_lasting: Opener) -> None:
        with another(database := open_lasting()) as other, another(database, maintain_projections=False) as alone:
            for number, each in enumerate(SCENE):
                (database, other, alone)[number % 3].events.append_all([each])
            other.events.append_all([renamed("x")])

            assert database.projections.verify() == []
            assert database.projections.position() == len(SCENE) + 1


class TestAnotherVersion:
    def test_tables_without_a_position_are_not_written(self, open_empty: Opener) -> None:
        database = open_empty()
        change(database, delete(schema.projection_positions))

        with pytest.raises(ProjectionsOutOfDate):
            database.events.append_all(SCENE)
        assert database.events.last_sequence() == 0

        database.projections.catch_up()
        database.events.append_all(SCENE)
        assert found(database) == told(*SCENE).state()

    def test_tables_are_rebuilt_at_the_next_opening(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        change(
            database,
            update(schema.projection_positions).values(version=0),
            update(schema.projection_projects).values(name="as an older version had it"),
            delete(schema.projection_turns),
        )
        reported: list[tuple[int, int]] = []

        with another(database, progress=lambda *pair: reported.append(pair)):
            assert database.projections.position() == len(SCENE) + 1

        assert database.read_model.snapshot() == told(*SCENE).snapshot().model_copy(update={"sequence": len(SCENE) + 1})
        assert [problem.sequence for problem in database.projections.problems()] == [len(SCENE) + 1]
        assert reported[-1] == (len(SCENE) + 1, len(SCENE) + 1)


@pytest.mark.usefixtures("small_pages")
class TestCatchUp:
    def test_reports_each_commit(self, open_empty: Opener) -> None:
        alone = open_empty(maintain_projections=False)
        alone.events.append_all(SCENE)
        database = Database(alone.engine)
        reported: list[tuple[int, int, int]] = []

        def report(done: int, total: int) -> None:
            reported.append((done, total, database.projections.position()))

        database.projections.catch_up(report)
        assert reported == [(8, 19, 8), (16, 19, 16), (19, 19, 19)]

        database.projections.catch_up(report)
        assert len(reported) == 3

    def test_resumes_where_it_was_interrupted(self, database: Database) -> None:
        events = long_session(6)
        append_alone(database, *events)
        model = ReferenceModel()
        done = 0
        for _ in range(4):
            calls = iter(range(2))

            def interrupt(*_: int, calls: Iterator[int] = calls) -> None:
                if next(calls, None) is None:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                database.projections.catch_up(interrupt)
            assert database.projections.position() == done + 3 * 8
            model.follow_all(events[done : done + 3 * 8])
            done += 3 * 8
            assert state_of(database.read_model, model.approvals) == model.state()

        totals: list[tuple[int, int]] = []
        database.projections.catch_up(lambda *pair: totals.append(pair))

        assert totals[-1] == (len(events) - done, len(events) - done)
        model.follow_all(events[done:])
        assert state_of(database.read_model, model.approvals) == model.state()

    def test_reports_events_that_are_appended_meanwhile(self, database: Database) -> None:
        append_alone(database, *SCENE)
        reported: list[tuple[int, int]] = []

        def append(done: int, total: int) -> None:
            reported.append((done, total))
            if len(reported) < 4:
                append_alone(database, *(renamed("x") for _ in range(5)))

        database.projections.catch_up(append)

        assert reported[-1] == (len(SCENE) + 15, len(SCENE) + 15)
        assert [done for done, _ in reported] == sorted(done for done, _ in reported)
        assert database.projections.position() == len(SCENE) + 15

    def test_reports_the_end_after_another_process_applied_the_rest(self, database: Database) -> None:
        append_alone(database, *SCENE)
        reported: list[tuple[int, int]] = []

        def overtake(*pair: int) -> None:
            reported.append(pair)  # type: ignore[arg-type]
            Projections(database.engine, [OrchestrationProjection()], orchestration_codec).catch_up()

        database.projections.catch_up(overtake)

        assert database.projections.verify() == []
        assert reported[-1][0] == reported[-1][1]

    def test_runs_at_opening_unless_projections_are_off(self, open_lasting: Opener) -> None:
        database = open_lasting(maintain_projections=False)
        database.events.append_all(SCENE)
        with another(database, maintain_projections=False) as alone:
            assert alone.projections.position() == 0
            assert alone.read_model.projects() == []

        reported: list[tuple[int, int]] = []
        with another(database, progress=lambda *pair: reported.append(pair)) as opened:
            assert found(opened) == told(*SCENE).state()
        assert reported == [(8, 19), (16, 19), (19, 19)]

    def test_takes_no_lock_if_there_is_nothing_to_apply(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        with database.engine.connect() as connection:
            database.events.append_all([renamed("x")], connection=connection)
            with another(database) as opened:  # would wait for the lock, and fail, otherwise
                assert found(opened) == told(*SCENE).state()
            connection.rollback()

    def test_two_processes_can_catch_up_at_once(self, open_lasting: Opener) -> None:
        database = open_lasting(maintain_projections=False)
        events = long_session(4)
        database.events.append_all(events)
        processes_at_once = 3
        together = processes.context.Barrier(processes_at_once)
        url = database.engine.url.render_as_string(hide_password=False)

        codes = processes.exit_codes(projection_processes.open_together, [(together, url)] * processes_at_once)

        assert codes == [0] * processes_at_once
        model = ReferenceModel()
        model.follow_all(events)
        assert state_of(database.read_model, model.approvals) == model.state()
        assert database.projections.verify() == []
