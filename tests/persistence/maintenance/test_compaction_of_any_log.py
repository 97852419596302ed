"""For any events, a compaction changes nothing but the number of chunks."""

from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from helpers.agent_session import long_session
from helpers.orchestration_scene import append_alone, rows_of_all_tables
from helpers.random_events import THREADS, TURNS, batches, invented
from helpers.reference_model import ReferenceModel, State
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from peon.orchestration import MessageChunkReceived, OrchestrationEvent
from peon.persistence import AppendCondition, ConcurrencyError, Database, EventQuery, UndecodableEvent
from peon.persistence.maintenance import streamed_messages
from peon.persistence.schema import events

Opener = Callable[..., Database]

pytestmark = pytest.mark.usefixtures("small_pages")

NO_TIME = timedelta(0)


def derived(database: Database) -> dict[str, list[object]]:
    tables = rows_of_all_tables(database)
    return {name: rows for name, rows in tables.items() if name.startswith("projection_") or name == "checkpoints"}


def told_by_replay(database: Database) -> State:
    """Returns the state that the log tells, without contradictory and undecodable events."""
    model = ReferenceModel(without_nul=database.engine.dialect.name == "postgresql")
    for stored in database.events.stream(undecodable=UndecodableEvent):
        model.sequence = stored.sequence - 1
        if not isinstance(stored.event, UndecodableEvent):
            model.follow_all([stored.event])
    model.sequence = database.events.last_sequence()
    return model.state()


def others(database: Database) -> list[object]:
    stored = database.events.stream(undecodable=UndecodableEvent)
    return [each for each in stored if not isinstance(each.event, MessageChunkReceived)]


def conditions_hold(database: Database) -> list[bool]:
    """Returns for each thread, each turn and some positions whether an append would be refused."""
    queries = [EventQuery(thread_id=thread) for thread in THREADS] + [EventQuery(turn_id=turn) for turn in TURNS]
    queries.append(EventQuery(event_types=["MessageChunkReceived"]))
    return [
        holds(database, AppendCondition(query, after))
        for query in queries
        for after in range(0, database.events.last_sequence(), 7)
    ]


def holds(database: Database, condition: AppendCondition) -> bool:
    try:
        database.events.append_all([], condition=condition)
    except ConcurrencyError:
        return False
    return True


def store(database: Database, chance: Random, batch: list[OrchestrationEvent]) -> None:
    append_alone(database, *batch)
    if not chance.randrange(8):
        sequence = database.events.last_sequence() + 1
        with database.engine.begin() as connection:
            add_undecodable(connection, sequence)


def add_undecodable(connection: Connection, sequence: int) -> None:
    row = {"sequence": sequence, "event_type": "MessageChunkReceived", "payload": "{}"}
    connection.execute(insert(events).values(**row, stored_at="2026-01-01T00:00:00.000000Z"))


@pytest.mark.parametrize("examples", [0, pytest.param(12, marks=pytest.mark.slow)])
def test_only_the_number_of_chunks_changes(open_empty: Opener, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    monkeypatch.setattr(streamed_messages, "STEP_EVENTS", 5)
    merged: list[int] = []

    def check(seed: int, count: int) -> None:
        chance = Random(seed)
        database = open_empty("compacted", maintain_projections=False)
        model = ReferenceModel(without_nul=database.engine.dialect.name == "postgresql")
        if seed % 2:
            story = list(invented(chance, model, count, contradictions=0.1))
        else:
            story = long_session(1 + count // 40, seed)[:count]
        for batch in batches(chance, story):
            store(database, chance, batch)
        database.projections.catch_up()
        position = chance.randrange(database.events.last_sequence() + 1)
        if not chance.randrange(4):
            database.events.durable_subscription("reader", after=position).close()
        list(database.events.stream(query=EventQuery(thread_id=THREADS[0])))  # fills the index of tags
        before = derived(database), told_by_replay(database), others(database), conditions_hold(database)
        differences = database.projections.verify()
        sequences = [stored.sequence for stored in database.events.stream(undecodable=UndecodableEvent)]

        planned = database.maintenance.compact(older_than=NO_TIME, dry_run=True)
        done = database.maintenance.compact(older_than=NO_TIME)

        assert done == planned
        merged.append(done.removed)
        assert (derived(database), told_by_replay(database), others(database), conditions_hold(database)) == before
        assert database.projections.verify() == differences
        left = [stored.sequence for stored in database.events.stream(undecodable=UndecodableEvent)]
        assert len(sequences) - len(left) == done.removed
        gaps = {number for gap in database.maintenance.removed_events() for number in range(gap.first, gap.last + 1)}
        assert gaps == set(sequences) - set(left)
        assert database.maintenance.lost_events() == []
        again = database.maintenance.compact(older_than=NO_TIME)
        assert (again.messages, again.removed) == (0, 0)
        database.projections.rebuild()
        assert derived(database) == before[0]

    check(seed=1_631_905_369, count=107)  # a message identifier that is used again in another turn
    check(seed=2, count=120)
    if examples:
        given(seed=st.integers(0, 2**32), count=st.integers(1, 150))(
            settings(max_examples=examples, deadline=None, phases=[Phase.generate])(check)
        )()
    assert any(merged), merged
