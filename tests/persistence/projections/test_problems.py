"""Stored events that a projection cannot apply are skipped and recorded as problems."""

import pytest
from helpers.orchestration_scene import (
    EACH_CONTRADICTION,
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
    is_postgresql,
    random_name,
    renamed,
    told,
)
from helpers.reference_model import ReferenceModel
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import delete

from peon.orchestration import (
    BranchCreated,
    BranchPushed,
    OrchestrationEvent,
)
from peon.persistence import Database, Difference, Problem, schema
from peon.persistence.backends.postgresql import MAXIMUM_KEY_BYTES

UNDECODABLE = [
    ("Unheard", "{}", "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", "{", "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", '{"type":"ProjectRenamed"}', "2026-05-17T00:00:00.000000Z"),
    ("ProjectRenamed", renamed("in vain").model_dump_json(), "yesterday"),
]


class TestProblems:
    @pytest.mark.parametrize(("contradictory", "reason"), rest_is_slow(EACH_CONTRADICTION, first=8))
    def test_a_stored_contradiction_is_skipped(
        self, open_empty_memory: Opener, contradictory: OrchestrationEvent, reason: str
    ) -> None:
        database = open_empty_memory()
        append_alone(database, *SCENE, contradictory, renamed("x"))

        database.projections.catch_up()

        (problem,) = database.projections.problems()
        assert problem[:3] == ("orchestration", len(SCENE) + 1, contradictory.type)
        assert reason in problem.reason
        model = ReferenceModel()
        assert list(model.follow_all([*SCENE, contradictory, renamed("x")])) == [len(SCENE) + 1]
        assert found(database) == model.state()

    def test_an_undecodable_event_is_skipped(self, open_lasting: Opener) -> None:
        database = open_lasting(maintain_projections=False)
        database.events.append_all(SCENE)
        numbers = [add_row(database, *row) for row in UNDECODABLE]
        if not is_postgresql(database):
            numbers.append(add_row(database, b"\xff", b"\xfe"))
        append_alone(database, renamed("x"))

        with another(database) as opened:
            problems = opened.projections.problems()
            assert [(problem.projection, problem.sequence) for problem in problems] == [
                ("orchestration", number) for number in numbers
            ]
            assert [problem.event_type for problem in problems[:4]] == [row[0] for row in UNDECODABLE]
            assert all(problem.reason for problem in problems)
            assert opened.read_model.project(PROJECT).name == "x"  # type: ignore[union-attr]
            opened.events.append_all([renamed("y")])
            assert opened.projections.position() == opened.events.last_sequence()
            assert [difference.key for difference in opened.projections.verify()] == [
                f"orchestration/{number}" for number in numbers
            ]
            opened.projections.rebuild()
            assert opened.projections.problems() == problems

    def test_verify_reports_problems(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        reason = f"there is no project {UNKNOWN}"

        number = len(SCENE) + 1
        assert database.projections.problems() == [Problem("orchestration", number, "ProjectRenamed", reason)]
        assert database.projections.verify() == [
            Difference("projection_problems", f"orchestration/{number}", "reason", None, reason)
        ]

    def test_a_nul_character_in_a_name_of_git_is_a_problem_on_postgresql(self, database: Database) -> None:
        append_alone(database, *SCENE, BranchCreated(thread_id=THREAD, name="a\0b"), renamed("c\0d"))

        database.projections.catch_up()

        assert database.read_model.project(PROJECT).name == "c\u2400d"  # type: ignore[union-attr]
        names = {branch.name for branch in database.read_model.branches(THREAD)}
        assert (names, len(database.projections.problems())) == (
            ({"tides"}, 1) if is_postgresql(database) else ({"tides", "a\0b"}, 0)
        )

    def test_a_branch_name_too_long_for_an_index_is_a_problem_on_postgresql(self, database: Database) -> None:
        too_long = random_name(MAXIMUM_KEY_BYTES + 1)
        made = BranchCreated(thread_id=THREAD, name=too_long)
        append_alone(
            database, *SCENE, made, BranchPushed(thread_id=THREAD, name=too_long, remote="origin"), renamed("b")
        )

        for build in (database.projections.catch_up, database.projections.rebuild):
            build()
            problems = [problem.sequence - len(SCENE) for problem in database.projections.problems()]
            assert problems == ([1, 2] if is_postgresql(database) else [])
            assert database.read_model.project(PROJECT).name == "b"  # type: ignore[union-attr]
        assert database.events.append_all([renamed("c")])[0].sequence == len(SCENE) + 4

    def test_problems_do_not_prevent_a_start_up_after_the_position_was_lost(self, open_lasting: Opener) -> None:
        database = open_lasting()
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        change(database, delete(schema.projection_positions))

        with another(database) as opened:
            assert [problem.sequence for problem in opened.projections.problems()] == [len(SCENE) + 1]
            assert opened.read_model.snapshot().threads == told(*SCENE).snapshot().threads
