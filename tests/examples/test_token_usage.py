"""The example's event and projection: the tokens that each thread has used."""

from pathlib import Path
from uuid import UUID

import pytest
from helpers.orchestration_scene import OTHER_PROJECT, OTHER_THREAD, PROJECT, THREAD, TURN, UNKNOWN, project, thread
from sqlalchemy import URL

from peon import Database, EventStore, ProjectionError
from peon.orchestration import ProjectDeleted, ThreadDeleted, TurnStarted
from peon.testing import ProjectionSuite

SCRIPT = Path(__file__).parents[2] / "examples" / "token_usage.py"

if not SCRIPT.is_file():
    pytest.skip("the examples are not here: no checkout", allow_module_level=True)

from token_usage import (  # noqa: E402
    AppEvent,
    TokensPerThread,
    TokenUsage,
    TurnTokensUsed,
    codec,
    tokens_of_thread,
)


def used(input_tokens: int, output_tokens: int, thread_id: UUID = THREAD) -> TurnTokensUsed:
    return TurnTokensUsed(
        turn_id=TURN, thread_id=thread_id, model="a-model", input_tokens=input_tokens, output_tokens=output_tokens
    )


EVENTS: list[AppEvent] = [
    project(PROJECT),
    project(OTHER_PROJECT),
    thread(THREAD),
    thread(OTHER_THREAD, OTHER_PROJECT),
    TurnStarted(turn_id=TURN, thread_id=THREAD),
    used(1200, 30),
    used(2**52, 0, OTHER_THREAD),
    used(2**52, 7, OTHER_THREAD),
    used(1300, 40),
]


def tokens(database: Database[AppEvent]) -> list[TokenUsage | None]:
    with database.read_transaction() as connection:
        return [tokens_of_thread(connection, thread_id) for thread_id in (THREAD, OTHER_THREAD)]


def test_they_are_summed_until_the_thread_is_deleted(url: URL, migrated: None) -> None:
    with Database.open(url=url, codec=codec, projections=[TokensPerThread()]) as database:
        database.events.append_all(EVENTS)
        of_thread = TokenUsage(input_tokens=2500, output_tokens=70)
        of_other = TokenUsage(input_tokens=2**53, output_tokens=7)
        assert tokens(database) == [of_thread, of_other]
        with pytest.raises(ProjectionError, match=f"there is no thread {UNKNOWN}"):
            database.events.append_all([used(1, 1), used(1, 1, UNKNOWN)])
        database.projections.rebuild()
        assert tokens(database) == [of_thread, of_other]

        database.events.append_all([ThreadDeleted(thread_id=THREAD)])
        assert tokens(database) == [None, of_other]
        database.events.append_all([ProjectDeleted(project_id=OTHER_PROJECT)])
        assert tokens(database) == [None, None]
        assert database.projections.problems() == database.projections.verify() == []


def test_a_stored_report_of_an_unknown_thread_is_a_problem_of_this_projection_alone(url: URL, migrated: None) -> None:
    with Database.open(url=url, codec=codec, projections=[TokensPerThread()]) as database:
        alone = EventStore(database.engine, codec)
        alone.append_all([*EVENTS, used(1, 1, UNKNOWN)])
        alone.close()
        database.projections.catch_up()
        assert tokens(database)[0] == TokenUsage(input_tokens=2500, output_tokens=70)
        [problem] = database.projections.problems()
        assert (problem.projection, problem.sequence) == ("tokens_per_thread", len(EVENTS) + 1)


class TestTokensPerThread(ProjectionSuite):
    codec = codec

    def projection(self) -> TokensPerThread:
        return TokensPerThread()

    def sample_events(self) -> list[AppEvent]:
        return EVENTS
