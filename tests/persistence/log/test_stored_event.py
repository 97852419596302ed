"""With `undecodable=`, stored events that cannot be decoded keep their place among the others."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from helpers.recorded_payloads import EVENT
from helpers.secret import SECRET, assert_secret_is_kept
from helpers.tide_events import ONE, STORED_AT, StationClosed
from sqlalchemy import URL, insert, text

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    OrchestrationEvent,
    ProjectRenamed,
    ToolCallContent,
)
from peon.persistence import (
    Database,
    EventCodec,
    EventDecodeError,
    EventStore,
    UndecodableEvent,
)
from peon.persistence.schema import events as log

FINE = f'{{"type":"ProjectRenamed","occurred_at":"2025-03-14T09:26:53Z","project_id":"{ONE}","name":"łódź \\\\xff"}}'


def some_renamings(count: int) -> list[OrchestrationEvent]:
    return [ProjectRenamed(project_id=ONE, name=f"łódź {n} \\xff") for n in range(count)]


def insert_between_events(database: Database, row: str) -> list[Any]:
    """Inserts a row that the store would never write, between two events before and two after it."""
    before = database.events.append_all(some_renamings(2))
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO events (sequence, event_type, payload, stored_at) VALUES (3, {row})")
    return before + database.events.append_all(some_renamings(2))


def assert_kept(database: Database, row: str, event_type: str, payload: str) -> UndecodableEvent:
    neighbours = insert_between_events(database, row)

    kept = database.events.replay_all(undecodable=UndecodableEvent)

    assert [sequence for sequence, _, _ in kept] == [1, 2, 3, 4, 5]
    assert kept[:2] + kept[3:] == neighbours
    event = kept[2].event
    assert isinstance(event, UndecodableEvent)
    assert (event.event_type, event.payload) == (event_type, payload)
    assert event.reason
    assert database.events.replay_from(4) == neighbours[2:]
    assert [
        (number, event) for number, event, _ in database.events.stream(after=2, limit=1, undecodable=UndecodableEvent)
    ] == [(3, event)]

    stream = database.events.stream()
    assert [next(stream), next(stream)] == neighbours[:2]
    with pytest.raises(EventDecodeError, match="undecodable=UndecodableEvent") as caught:
        next(stream)
    assert (caught.value.sequence, caught.value.event_type) == (3, event_type)
    assert caught.value.reason == event.reason
    assert_secret_is_kept(caught.value)
    reads: list[Callable[[], object]] = [database.events.replay_all, lambda: database.events.replay_from(3)]
    for read in reads:
        with pytest.raises(EventDecodeError):
            read()
    assert database.events.append_all(some_renamings(1))[0].sequence == 6
    return event


@pytest.mark.parametrize(
    ("event_type", "payload"),
    [
        ("ProjectPainted", f'{{"name":"{SECRET}"}}'),
        ("", FINE),
        ("ProjectRenamed", ""),
        ("ProjectRenamed", SECRET),
        ("ProjectRenamed", f'{{"type":"ProjectRenamed","name":"{SECRET}"}}'),
        ("ProjectDeleted", FINE),
    ],
    ids=["unknown type", "no type", "nothing", "no JSON", "fields missing", "another type"],
)
def test_an_undecodable_event_keeps_its_place(database: Database, event_type: str, payload: str) -> None:
    row = f"'{event_type}', '{payload}', '{STORED_AT}'"

    assert_kept(database, row, event_type, payload)


@pytest.mark.parametrize("stored_at", ["", "yesterday", "2025-03-14T09:26:53", "2025-03-14T09:26:53+01:00"])
def test_an_event_without_a_time_in_utc_keeps_its_place(database: Database, stored_at: str) -> None:
    row = f"'ProjectRenamed', '{FINE}', '{stored_at}'"

    event = assert_kept(database, row, "ProjectRenamed", FINE)

    assert event.reason == "stored_at is not a timestamp"


DAMAGED_IN_SQLITE = {
    "payload as BLOB": (f"'ProjectRenamed', x'{SECRET.encode().hex()}', '{STORED_AT}'", "ProjectRenamed", SECRET),
    "payload as BLOB, not UTF-8": (f"'ProjectRenamed', x'7bff', '{STORED_AT}'", "ProjectRenamed", r"{\xff"),
    "payload not UTF-8": (
        f"'ProjectRenamed', CAST(x'ff' AS TEXT) || '{SECRET}', '{STORED_AT}'",
        "ProjectRenamed",
        rf"\xff{SECRET}",
    ),
    "payload not UTF-8 inside of text": (
        f"'ProjectRenamed', CAST(x'{FINE[:-2].encode().hex()}ff227d' AS TEXT), '{STORED_AT}'",
        "ProjectRenamed",
        FINE[:-2] + r"\xff" + '"}',
    ),
    "event_type not UTF-8": (f"CAST(x'41ff' AS TEXT), '{FINE}', '{STORED_AT}'", r"A\xff", FINE),
    "stored_at not UTF-8": (f"'ProjectRenamed', '{FINE}', CAST(x'ff' AS TEXT)", "ProjectRenamed", FINE),
    "stored_at as BLOB": (f"'ProjectRenamed', '{FINE}', x'{STORED_AT.encode().hex()}'", "ProjectRenamed", FINE),
    "all not UTF-8": ("CAST(x'fe' AS TEXT), CAST(x'ff' AS TEXT), CAST(x'fd' AS TEXT)", r"\xfe", r"\xff"),
}


@pytest.mark.parametrize(("row", "event_type", "payload"), DAMAGED_IN_SQLITE.values(), ids=DAMAGED_IN_SQLITE)
def test_a_damaged_row_keeps_its_place(sqlite_url: URL, row: str, event_type: str, payload: str) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        assert_kept(database, row, event_type, payload)


def test_an_event_type_that_is_not_text_keeps_its_place(sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        row = f"x'41ff', '{FINE}', '{STORED_AT}'"
        neighbours = insert_between_events(database, row)

        kept = database.events.replay_all(undecodable=UndecodableEvent)

        assert kept[:2] + kept[3:] == neighbours
        assert isinstance(kept[2].event, UndecodableEvent)
        assert isinstance(kept[2].event.event_type, str)
        assert kept[2].event.payload == FINE


@pytest.mark.parametrize("position", ["first", "later"])
def test_an_undecodable_event_has_its_own_time(database: Database, position: str) -> None:
    if position == "later":
        database.events.append_all(some_renamings(1))
    with database.engine.begin() as connection:
        connection.execute(
            insert(log), {"sequence": 9, "event_type": "ProjectPainted", "payload": "{}", "stored_at": STORED_AT}
        )

    kept = database.events.replay_all(undecodable=UndecodableEvent)[-1]

    assert kept.stored_at == datetime(2025, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)


def test_many_damaged_rows_do_not_affect_other_rows(sqlite_url: URL) -> None:
    count = 2_500  # more rows than one fetch returns
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
                    "INSERT INTO events (event_type, payload, stored_at) SELECT 'ProjectRenamed', "
                    "CASE i % 3 WHEN 0 THEN CAST(x'ff' AS TEXT) ELSE :fine END, :stored_at FROM n"
                ),
                {"count": count, "fine": FINE, "stored_at": STORED_AT},
            )

        kept = database.events.replay_all(undecodable=UndecodableEvent)

        assert [stored.sequence for stored in kept] == list(range(1, count + 1))
        fine = EVENT.validate_json(FINE)
        assert all(
            isinstance(event, UndecodableEvent) if sequence % 3 == 0 else event == fine for sequence, event, _ in kept
        )
        # The connection still reads text in the usual way.
        assert database.events.append_all([fine])[0] == database.events.replay_from(count + 1)[0]


def test_a_codec_can_read_a_log_of_events_that_it_does_not_know(database: Database) -> None:
    call = ToolCallContent(tool_call_id="1", name="run", arguments={"a": 1.0})
    database.events.append_all(
        [
            MessageAppended(message_id=ONE, turn_id=ONE, thread_id=ONE, role="assistant", content=call),
            ApprovalRequested(approval_id=ONE, turn_id=ONE, thread_id=ONE, action="run", detail=1.0),
        ]
    )
    other: EventStore[Any] = EventStore(database.engine, EventCodec(StationClosed))

    (closed,) = other.append_all([StationClosed(station="Hel")])

    kept = other.replay_all(undecodable=UndecodableEvent)
    assert [getattr(event, "event_type", None) for _, event, _ in kept] == [
        "MessageAppended",
        "ApprovalRequested",
        None,
    ]
    assert kept[2] == closed
    assert list(other.stream(event_types=["StationClosed"])) == [closed]
    other.close()
