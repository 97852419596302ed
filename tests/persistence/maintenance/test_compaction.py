"""The chunks of a message become one event, unless a consumer has still to read them one by one."""

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from helpers.orchestration_scene import append_alone, rows_of_all_tables
from helpers.streamed_text import (
    MESSAGE,
    NO_AGE,
    OTHER_MESSAGE,
    OTHER_TURN,
    SCENE,
    THREAD,
    TURN,
    chunk,
    chunks,
    deltas,
    ended,
    started,
    whole,
)
from sqlalchemy import delete, insert, select, update

from peon.orchestration import MessageChunkReceived, ThreadDeleted
from peon.persistence import (
    CommandConflict,
    CommandEventsMerged,
    Compaction,
    Database,
    EventQuery,
    SequenceRange,
    UndecodableEvent,
    copy_database,
    salvage_database,
)
from peon.persistence.maintenance import streamed_messages
from peon.persistence.maintenance.merging import Merger
from peon.persistence.schema import event_tags, events, merged_events, projection_positions

Opener = Callable[..., Database]

A_TIME = "2026-01-01T00:00:00.000000Z"


def compact(database: Database) -> Compaction:
    return database.maintenance.compact(older_than=NO_AGE)


def gaps(database: Database) -> list[tuple[int, int]]:
    return [(gap.first, gap.last) for gap in database.maintenance.removed_events()]


def test_the_merged_event_takes_the_place_of_the_last_chunk(database: Database) -> None:
    stored = database.events.append_all([*SCENE, *whole("ebb")])
    text = database.read_model.message(MESSAGE)

    assert compact(database) == Compaction(messages=1, removed=2, until=8, held_back_by=())

    last = stored[6]
    assert isinstance(last.event, MessageChunkReceived)
    merged = last._replace(event=last.event.model_copy(update={"delta": "ebb"}))
    assert database.events.replay_all() == [*stored[:4], merged, stored[7]]
    assert gaps(database) == [(5, 6)]
    assert database.maintenance.removed_events()[0].reason == "compaction"
    assert database.read_model.message(MESSAGE) == text
    assert database.projections.verify() == []
    assert [each.sequence for each in database.events.append_all([ended_thread()])] == [9]


def ended_thread() -> ThreadDeleted:
    return ThreadDeleted(thread_id=THREAD)


def test_a_reader_in_the_middle_of_a_message_is_given_all_of_its_text(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("ebb")])
    assert deltas(database, after=5) == {6: "b", 7: "b"}

    compact(database)

    assert deltas(database, after=5) == {7: "ebb"}
    assert [stored.sequence for stored in database.events.stream(newest_first=True)] == [8, 7, 4, 3, 2, 1]


def test_messages_that_were_streamed_at_the_same_time_are_merged_apart(database: Database) -> None:
    both = [each for a, b in zip("ebb", "ABC", strict=True) for each in (chunk(a), chunk(b, OTHER_TURN, OTHER_MESSAGE))]
    opened = [*SCENE, *started(), *started(OTHER_TURN, OTHER_MESSAGE)]
    database.events.append_all([*opened, *both, ended()])

    compact(database)
    assert deltas(database) == {8: "A", 10: "B", 11: "ebb", 12: "C"}
    assert gaps(database) == [(7, 7), (9, 9)]

    database.events.append_all([ended(OTHER_TURN)])
    compact(database)
    assert deltas(database) == {11: "ebb", 12: "ABC"}
    assert gaps(database) == [(7, 10)], "adjacent gaps become one"
    assert database.projections.verify() == []


def test_single_late_and_unfinished_chunks_are_not_merged(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("e"), *chunks("bb")])  # one chunk, and late ones
    database.events.append_all([*started(OTHER_TURN, OTHER_MESSAGE), *chunks("run", OTHER_TURN, OTHER_MESSAGE)])
    before = deltas(database)

    assert compact(database)[:2] == (0, 0)

    assert deltas(database) == before
    assert database.projections.verify() == []


def test_events_younger_than_the_limit_are_not_merged(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("ebb")])

    assert database.maintenance.compact().removed == 0
    assert database.maintenance.compact(older_than=timedelta(seconds=30)).removed == 0
    with pytest.raises(ValueError, match="not negative"):
        database.maintenance.compact(older_than=timedelta(seconds=-1))
    assert compact(database).removed == 2


def test_a_durable_subscription_holds_back_what_it_has_not_read(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("ebb"), *whole("flow", OTHER_TURN, OTHER_MESSAGE)])
    for name, position in (("mail", 8), ("audit", 14)):
        database.events.durable_subscription(name, after=position).close()

    done = compact(database)

    assert done == Compaction(1, 2, until=8, held_back_by=("subscription mail at 8", "subscription audit at 14"))
    assert deltas(database) == {7: "ebb"} | dict(zip(range(11, 15), "flow", strict=True))


def test_a_projection_holds_back_what_it_has_not_applied(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("ebb")])
    with database.engine.begin() as connection:
        connection.execute(update(projection_positions).values(sequence=7))
    assert compact(database) == Compaction(0, 0, 7, ("projection orchestration at 7",))

    with database.engine.begin() as connection:
        connection.execute(delete(projection_positions))
    assert compact(database) == Compaction(0, 0, 0, ("projection orchestration at 0",))


def test_a_consumer_that_appears_while_the_log_is_read_is_respected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.events.append_all([*SCENE, *whole("ebb")])
    merge = Merger.merge

    def with_new_consumer(*arguments: object) -> object:
        database.events.durable_subscription("mail", after=5).close()
        return merge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Merger, "merge", with_new_consumer)

    assert compact(database).removed == 0
    assert len(deltas(database)) == 3


def test_a_long_message_is_merged_in_steps_and_into_events_of_limited_size(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_messages, "STEP_EVENTS", 4)
    monkeypatch.setattr(streamed_messages, "MERGED_CHARACTERS", 10)
    database.events.append_all([*SCENE, *whole("abcdefghijklmnopqrstuvwxyz")])
    reports: list[tuple[int, int]] = []

    planned = database.maintenance.compact(older_than=NO_AGE, dry_run=True)
    assert len(deltas(database)) == 26
    done = database.maintenance.compact(older_than=NO_AGE, progress=lambda *report: reports.append(report))

    assert planned == done == Compaction(3, 23, 31, ())
    assert deltas(database) == {14: "abcdefghij", 24: "klmnopqrst", 30: "uvwxyz"}
    assert reports[-1] == (31, 31)
    with database.engine.connect() as connection:
        held = connection.execute(select(merged_events.c.sequence, merged_events.c.events)).all()
    assert sorted(map(tuple, held)) == [(14, 10), (24, 10), (30, 6)]
    assert compact(database)[:2] == (0, 0)


def test_chunks_before_and_after_a_deletion_are_merged_apart(database: Database) -> None:
    deleted = [*SCENE, *started(), *chunks("old"), ended_thread(), SCENE[1], *whole("new")]
    database.events.append_all(deleted)

    compact(database)

    assert list(deltas(database).values()) == ["old", "new"]
    assert database.projections.verify() == []


def test_chunks_of_a_running_turn_that_uses_an_old_message_identifier_stay(database: Database) -> None:
    recreated = [
        ended_thread(),
        SCENE[1],
        *started(OTHER_TURN, MESSAGE),
        *chunks("new", OTHER_TURN),
        started()[0],
        ended(),
    ]
    database.events.append_all([*SCENE, *started(), *chunks("old"), *recreated])

    compact(database)

    assert list(deltas(database).values())[-3:] == ["n", "e", "w"], "its turn runs"
    assert database.projections.verify() == []


def test_no_merge_crosses_an_event_that_a_later_version_may_apply(database: Database) -> None:
    database.events.append_all([*SCENE, *started(), *chunks("ab")])
    undecodable = {"sequence": 7, "event_type": "MessageChunkReceived", "payload": "{}", "stored_at": A_TIME}
    with database.engine.begin() as connection:
        connection.execute(insert(events).values(undecodable))
    contradictory = chunk("?", OTHER_TURN)
    append_alone(database, *chunks("cd"), contradictory, *chunks("efg"), ended())
    database.projections.catch_up()
    found = database.projections.verify()

    compact(database)

    stored = database.events.stream(after=4, undecodable=UndecodableEvent)
    assert [each.sequence for each in stored] == [6, 7, 9, 10, 13, 14]
    assert database.projections.verify() == found
    assert [problem.sequence for problem in database.projections.problems()] == [7, 10]


def test_another_compaction_at_the_same_time_ends_this_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.events.append_all([*SCENE, *whole("ebb")])
    merge = Merger.merge

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(Merger, "merge", merge)
        assert compact(database).removed == 2
        return merge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Merger, "merge", overtaken)

    assert compact(database).removed == 0
    assert deltas(database) == {7: "ebb"}


def test_the_index_of_tags_has_only_the_remaining_events(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("flow" * 300)])
    query = EventQuery(turn_id=TURN)
    assert len(list(database.events.stream(query=query))) == 1203

    compact(database)

    assert [stored.sequence for stored in database.events.stream(query=query)] == [3, 4, 1204, 1205]
    with database.engine.connect() as connection:
        indexed = set(connection.scalars(select(event_tags.c.sequence)))
    assert indexed <= {stored.sequence for stored in database.events.stream()}


def refused(database: Database, batch: list[MessageChunkReceived], command: UUID) -> CommandEventsMerged:
    last = database.events.last_sequence()
    with pytest.raises(
        CommandEventsMerged, match=rf"{command} was carried out at 20\d\d-.+ take the command"
    ) as caught:
        database.events.append_all(batch, command_id=command)
    assert database.events.last_sequence() == last
    return caught.value


def test_a_repeated_command_whose_events_were_merged_stores_nothing(database: Database) -> None:
    first, second, third, other = (uuid4() for _ in range(4))
    database.events.append_all([*SCENE, *started()])
    stored = database.events.append_all([chunk("e"), chunk("b")], command_id=first)
    database.events.append_all([chunk("b")], command_id=second)
    database.events.append_all([chunk("!")], command_id=third)
    last = database.events.append_all([ended()], command_id=other)

    compact(database)

    error = refused(database, [chunk("e"), chunk("b")], first)
    assert (error.command_id, error.removed, error.events, error.stored_at) == (first, 2, 2, stored[0].stored_at)
    assert refused(database, [chunk("b")], second).removed == 1
    assert refused(database, [chunk("!")], third).removed == 0, "its event now holds the text of all"
    assert database.events.append_all([ended()], command_id=other) == last
    with pytest.raises(CommandConflict):
        database.events.append_all([ended(OTHER_TURN)], command_id=other)


def test_copies_have_the_recorded_gaps(database: Database, open_empty: Opener) -> None:
    database.events.append_all([*SCENE, *started()])
    command = uuid4()
    database.events.append_all([chunk("e"), chunk("b")], command_id=command)
    database.events.append_all([chunk("b"), ended()])
    compact(database)
    with database.engine.connect() as connection:
        assert connection.scalars(select(merged_events.c.events)).all() == [3]

    for name in ("copied", "salvaged"):
        target = open_empty(name, maintain_projections=False)
        if name == "copied":
            assert copy_database(database, target) == 6
        else:
            report = salvage_database(database, target)
            assert (report.events, report.lost_sequences, report.lost_rows) == (6, (), ())
        copied = rows_of_all_tables(target)
        original = rows_of_all_tables(database)
        for table in ("events", "removed_events", "merged_events", "command_receipts"):
            assert copied[table] == original[table] != []
        assert target.maintenance.lost_events() == []
        refused(target, [chunk("e"), chunk("b")], command)


def test_an_event_that_was_removed_by_hand_is_lost(database: Database) -> None:
    database.events.append_all([*SCENE, *whole("ebb"), *whole("flow", OTHER_TURN, OTHER_MESSAGE)])
    compact(database)
    assert gaps(database) == [(5, 6), (11, 13)]
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE events DISABLE TRIGGER events_refuse_change")
        else:
            connection.exec_driver_sql("DROP TRIGGER events_refuse_delete")
        connection.exec_driver_sql("DELETE FROM events WHERE sequence IN (1, 4, 7, 8, 14)")
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE events ENABLE TRIGGER events_refuse_change")

    assert database.maintenance.lost_events() == [
        SequenceRange(1, 1),
        SequenceRange(4, 4),
        SequenceRange(7, 8),
        SequenceRange(14, 14),
    ]
