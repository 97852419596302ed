"""For any events in any batches, the tables equal the state of the reference model."""

from collections.abc import Callable
from random import Random

import pytest
from helpers.random_events import APPROVALS, batches, invented
from helpers.reference_model import ReferenceModel, State, state_of
from hypothesis import given, settings
from hypothesis import strategies as st

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database, Difference, ProjectionError
from peon.persistence.orchestration import deletions

Opener = Callable[..., Database]

pytestmark = pytest.mark.usefixtures("small_pages")

seeds = st.integers(0, 2**32)
counts = st.integers(1, 90)
"""How many events to generate; Hypothesis shrinks a counter-example to the fewest events of its seed."""

few_or_many_examples = pytest.mark.parametrize("examples", [2, pytest.param(16, marks=pytest.mark.slow)])


def check_any_events(check: Callable[[int, int], None], examples: int) -> None:
    """Calls the check with seeds and numbers of events; deletions remove their rows, or hide them for some time."""

    def check_with_deletions(seed: int, count: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deletions, "SMALL_ROWS", [deletions.SMALL_ROWS, 3, -1][seed % 3])
            patch.setattr(deletions, "STEP_ROWS", [0, 1, 4][seed // 3 % 3])
            check(seed, count)

    settings(max_examples=examples, deadline=None)(given(seed=seeds, count=counts)(check_with_deletions))()


def told(database: Database) -> ReferenceModel:
    return ReferenceModel(without_nul=database.engine.dialect.name == "postgresql")


def found(database: Database) -> State:
    return state_of(database.read_model, APPROVALS)


def append(database: Database, chance: Random, events: list[OrchestrationEvent]) -> None:
    for batch in batches(chance, events):
        database.events.append_all(batch)


def problems(database: Database) -> list[int]:
    return [problem.sequence for problem in database.projections.problems()]


def differences(database: Database) -> list[str]:
    """Returns the keys of the reported problems; fails if `verify` reports anything else."""
    reported = database.projections.verify()
    reasons = {str(problem.sequence): problem.reason for problem in database.projections.problems()}
    numbers = [difference.key.partition("/")[2] for difference in reported]
    assert reported == [
        Difference("projection_problems", f"orchestration/{number}", "reason", None, reasons[number])
        for number in numbers
    ]
    return numbers


@few_or_many_examples
def test_appended_rebuilt_and_caught_up_tables_match_the_reference_model(open_empty: Opener, examples: int) -> None:
    def check(seed: int, count: int) -> None:
        chance = Random(seed)
        live, caught_up = open_empty("live"), open_empty("caught_up", maintain_projections=False)
        model = told(live)
        events = list(invented(chance, model, count))
        assert model.follow_all(events) == {}

        append(live, chance, events)
        append(caught_up, chance, events)
        assert found(live) == model.state()
        assert live.projections.verify() == []

        caught_up.projections.catch_up()
        assert found(caught_up) == model.state()
        live.projections.rebuild()
        assert found(live) == model.state()

    check_any_events(check, examples)


@few_or_many_examples
def test_a_batch_is_refused_as_a_whole_if_and_only_if_one_of_its_events_contradicts(
    open_empty: Opener, examples: int
) -> None:
    def check(seed: int, count: int) -> None:
        chance = Random(seed)
        database = open_empty("live")
        model = told(database)
        while model.sequence < count:
            size = chance.choice([1, 2, 5, 10])
            batch = list(invented(chance, model, size, contradictions=0.1))
            index = model.index_of_contradiction(batch)
            if index is None:
                model.follow_all(batch)
                database.events.append_all(batch)
            else:
                with pytest.raises(ProjectionError) as caught:
                    database.events.append_all(batch)
                assert (caught.value.index, caught.value.event_type) == (index, batch[index].type)
                model.follow_all(batch[:index])
                database.events.append_all(batch[:index])
            assert database.events.last_sequence() == model.sequence == database.projections.position()

        assert found(database) == model.state()
        assert database.projections.verify() == []

    check_any_events(check, examples)


@few_or_many_examples
def test_catching_up_skips_only_the_contradictory_events(open_empty: Opener, examples: int) -> None:
    def check(seed: int, count: int) -> None:
        chance = Random(seed)
        database = open_empty("stored", maintain_projections=False)
        model = told(database)
        append(database, chance, list(invented(chance, model, count, contradictions=0.25)))
        events = [stored.event for stored in database.events.stream()]
        contradictory = list(model.follow_all(events))

        database.projections.catch_up()

        assert problems(database) == contradictory
        assert found(database) == model.state()
        assert differences(database) == [str(sequence) for sequence in contradictory]

    check_any_events(check, examples)


@few_or_many_examples
def test_an_append_first_applies_events_that_were_stored_without_projections(open_empty: Opener, examples: int) -> None:
    def check(seed: int, count: int) -> None:
        chance = Random(seed)
        database = open_empty("both")
        alone = Database(database.engine, maintain_projections=False)
        model = told(database)
        contradictory: list[int] = []
        while model.sequence < count:
            batch = list(invented(chance, model, chance.choice([1, 3, 12]), contradictions=0.1))
            if chance.randrange(2):
                alone.events.append_all(batch)
                contradictory += model.follow_all(batch)
                continue
            index = model.index_of_contradiction(batch)
            if index is None:
                database.events.append_all(batch)
                model.follow_all(batch)
                assert found(database) == model.state()
            else:
                with pytest.raises(ProjectionError) as caught:
                    database.events.append_all(batch)
                assert caught.value.index == index
        alone.events.close()
        database.projections.catch_up()

        assert found(database) == model.state()
        assert problems(database) == contradictory
        assert differences(database) == [str(sequence) for sequence in contradictory]

    check_any_events(check, examples)
