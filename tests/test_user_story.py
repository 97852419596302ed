"""The tests that the first user asked for; start reading the tests here."""

from uuid import uuid4

import pytest
from sqlalchemy import URL

from peon.orchestration import OrchestrationEvent, ProjectCreated, ProjectRenamed
from peon.persistence import Database, StoredEvent


def some_events(count: int) -> list[OrchestrationEvent]:
    project_id = uuid4()
    created = ProjectCreated(project_id=project_id, name="tide-table", path="/home/ada/tide-table")
    return [created, *(ProjectRenamed(project_id=project_id, name=f"name {n}") for n in range(1, count))]


def test_append_a_single_event_and_replay_it(database: Database) -> None:
    (event,) = some_events(1)

    stored = database.events.append_all([event])

    assert [(s.sequence, s.event) for s in stored] == [(1, event)]
    assert database.events.replay_all() == stored


def test_a_batch_has_contiguous_sequences(database: Database) -> None:
    first = database.events.append_all(some_events(3))
    second = database.events.append_all(some_events(4))

    assert [stored.sequence for stored in first] == [1, 2, 3]
    assert [stored.sequence for stored in second] == [4, 5, 6, 7]
    assert database.events.replay_all() == first + second


@pytest.mark.parametrize(("sequence", "expected"), [(1, [1, 2, 3, 4, 5]), (3, [3, 4, 5]), (5, [5]), (6, [])])
def test_replay_from_a_sequence_filters_correctly(database: Database, sequence: int, expected: list[int]) -> None:
    database.events.append_all(some_events(5))

    assert [stored.sequence for stored in database.events.replay_from(sequence)] == expected


def test_replay_of_an_empty_store(database: Database) -> None:
    assert database.events.replay_all() == []
    assert database.events.replay_from(1) == []
    assert database.events.last_sequence() == 0


def test_state_survives_a_restart(lasting_url: URL) -> None:
    with Database.open(url=lasting_url) as database:
        stored: list[StoredEvent[OrchestrationEvent]] = database.events.append_all(some_events(5))

    with Database.open(url=lasting_url) as database:
        assert database.events.replay_all() == stored
