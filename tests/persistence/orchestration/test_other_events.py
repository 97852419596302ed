"""Events of the application's own in the log of the domain pass by the domain's projection."""

import pytest
from helpers.orchestration_scene import SCENE, Opener, found, renamed, told
from helpers.tide_events import StationClosed

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database, EventCodec, EventStore, ProjectionError
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.projections import Projections

codec: EventCodec[OrchestrationEvent | StationClosed] = EventCodec(OrchestrationEvent | StationClosed)


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty()


@pytest.fixture
def store(database: Database) -> EventStore[OrchestrationEvent | StationClosed]:
    return EventStore(database.engine, codec, on_append=database.projections.apply)


OTHER = StationClosed(station="Hel")
AFTER = renamed("after the other")
BATCH = [*SCENE, OTHER, AFTER]


def test_an_append_applies_only_the_events_of_the_domain(
    database: Database, store: EventStore[OrchestrationEvent | StationClosed]
) -> None:
    store.append_all(BATCH)
    store.append_all([OTHER])
    with pytest.raises(ProjectionError) as caught:
        store.append_all([OTHER, SCENE[0]])
    store.close()

    assert caught.value.index == 1
    assert found(database) | {"snapshot": None} == told(*SCENE, AFTER).state() | {"snapshot": None}
    assert database.projections.position() == database.events.last_sequence() == len(BATCH) + 1
    assert database.projections.problems() == []


def test_a_replay_with_their_codec_applies_only_the_events_of_the_domain(
    database: Database, store: EventStore[OrchestrationEvent | StationClosed]
) -> None:
    without = EventStore(database.engine, codec)
    without.append_all(BATCH)
    without.close()
    projections = Projections(database.engine, [OrchestrationProjection()], codec)

    for bring_up_to_date in (projections.catch_up, projections.rebuild):
        bring_up_to_date()
        assert projections.problems() == []
        assert projections.verify() == []
        assert found(database) | {"snapshot": None} == told(*SCENE, AFTER).state() | {"snapshot": None}

    without.append_all([OTHER])
    without.close()
    Database(database.engine).projections.catch_up()  # with the codec of the domain alone
    assert [problem.event_type for problem in database.projections.problems()] == ["StationClosed"]
    store.append_all([renamed("next")])
    store.close()
