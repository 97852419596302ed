"""The format of the payloads must never change: recorded payloads are read, and written again byte for byte."""

import pytest
from helpers.event_strategies import CONTENT_CLASSES, EVENT_CLASSES, orchestration_events
from helpers.recorded_payloads import EVENT, PAYLOADS
from helpers.tide_events import STORED_AT
from hypothesis import given, settings
from sqlalchemy import insert, select

from peon.orchestration import (
    MessageAppended,
    OrchestrationEvent,
    event_type_name,
)
from peon.persistence import (
    Database,
    EventCodec,
)
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.schema import events as log


def type_of(payload: str) -> str:
    return event_type_name(EVENT.validate_json(payload))


every_recorded_payload = pytest.mark.parametrize(
    "payload", PAYLOADS, ids=[f"{line}-{type_of(payload)}" for line, payload in enumerate(PAYLOADS, 1)]
)


def test_a_payload_is_recorded_for_every_event_and_every_kind_of_content() -> None:
    recorded = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert {type(event) for event in recorded} == set(EVENT_CLASSES)
    assert {type(event.content) for event in recorded if isinstance(event, MessageAppended)} == set(CONTENT_CLASSES)


@every_recorded_payload
def test_a_recorded_payload_is_read_and_written_again_exactly(payload: str) -> None:
    event = orchestration_codec.decode(1, type_of(payload), payload)

    assert orchestration_codec.encode([event]) == ([type_of(payload)], [payload])


def test_recorded_payloads_in_a_database_are_read_and_stored_again_exactly(database: Database) -> None:
    rows = [{"event_type": type_of(payload), "payload": payload, "stored_at": STORED_AT} for payload in PAYLOADS]
    with database.engine.begin() as connection:
        connection.execute(insert(log), [{"sequence": number, **row} for number, row in enumerate(rows, 1)])

    replayed = [stored.event for stored in database.events.replay_all()]
    database.events.append_all(replayed)

    with database.engine.connect() as connection:
        stored = connection.execute(select(log.c.event_type, log.c.payload).order_by(log.c.sequence)).all()
    assert stored[: len(PAYLOADS)] == stored[len(PAYLOADS) :] == [(row["event_type"], row["payload"]) for row in rows]


@every_recorded_payload
def test_the_event_type_column_and_the_type_in_the_payload_name_the_class(payload: str) -> None:
    event = EVENT.validate_json(payload)

    (column,), (written,) = orchestration_codec.encode([event])

    assert column == type(event).__name__
    assert written.startswith(f'{{"type":"{column}","occurred_at":"')
    assert "\n" not in written


@every_recorded_payload
def test_the_payload_contains_the_whole_event(payload: str) -> None:
    event = orchestration_codec.decode(1, type_of(payload), payload)

    (written,) = orchestration_codec.encode([event])[1]

    # repr distinguishes 1, 1.0 and True; == does not.
    assert repr(EVENT.validate_json(written)) == repr(event)
    assert EVENT.validate_json(written) == event


def test_columns_are_in_the_order_of_the_events() -> None:
    events = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert orchestration_codec.encode(events) == ([type_of(payload) for payload in PAYLOADS], PAYLOADS)
    assert orchestration_codec.encode([]) == ([], [])


@given(event=orchestration_events)
@settings(deadline=None, max_examples=50)
def test_a_decoded_event_equals_the_encoded_event(event: OrchestrationEvent) -> None:
    (column,), (payload,) = orchestration_codec.encode([event])

    decoded = orchestration_codec.decode(1, column, payload)

    assert decoded == event
    assert repr(decoded) == repr(event)
    assert orchestration_codec.encode([decoded]) == ([column], [payload])


def test_the_default_check_accepts_every_event_of_the_domain() -> None:
    """The domain's codec replaces the default check by a cheaper one."""
    codec: EventCodec[OrchestrationEvent] = EventCodec(OrchestrationEvent)
    events = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert codec.encode(events)[1] == PAYLOADS
