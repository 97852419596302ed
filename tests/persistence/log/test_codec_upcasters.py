"""Upcasters convert payloads of earlier versions, step by step, to the current version."""

import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
from helpers.secret import SECRET
from helpers.tide_events import STORED_AT, TIDES, StationClosed, decode_error
from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert, select

from peon.persistence import (
    Database,
    EventCodec,
    EventDecodeError,
    EventStore,
    Upcaster,
)
from peon.persistence.schema import events as log


class StationRenamed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["StationRenamed"] = "StationRenamed"
    schema_version: Literal[3] = 3
    station_id: str
    names: dict[str, str]


# The payloads of versions 1, 2 and 3; the event of version 1 has also had another name.
TITLED_1 = '{"type":"StationTitled","station":"hel","title":"Hel"}'
RENAMED_1 = '{"type":"StationRenamed","station":"hel","name":"Hel"}'
RENAMED_2 = '{"type":"StationRenamed","schema_version":2,"station_id":"hel","name":"Hel"}'
RENAMED_3 = '{"type":"StationRenamed","schema_version":3,"station_id":"hel","names":{"pl":"Hel"}}'
HEL = StationRenamed(station_id="hel", names={"pl": "Hel"})


def rename_event(payload: dict[str, Any]) -> dict[str, Any]:
    return {"type": "StationRenamed", "station": payload["station"], "name": payload["title"]}


def rename_station(payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "StationRenamed",
        "schema_version": 2,
        "station_id": payload["station"],
        "name": payload["name"],
    }


def translate_name(payload: dict[str, Any]) -> dict[str, Any]:
    name = payload.pop("name")
    return payload | {"schema_version": 3, "names": {"pl": name}}


STEPS = [
    Upcaster("StationTitled", 1, rename_event),
    Upcaster("StationRenamed", 1, rename_station),
    Upcaster("StationRenamed", 2, translate_name),
]


def with_upcasters(*upcasters: Upcaster) -> EventCodec[Any]:
    return EventCodec(StationRenamed | StationClosed, upcasters=upcasters)


@pytest.mark.parametrize(
    ("event_type", "payload"),
    [
        ("StationTitled", TITLED_1),
        ("StationRenamed", RENAMED_1),
        ("StationRenamed", RENAMED_1.replace("}", ',"schema_version":1}')),
        ("StationRenamed", RENAMED_2),
        ("StationRenamed", RENAMED_3),
    ],
    ids=["version 1 of another name", "version 1", "version 1 that says so", "version 2", "version 3"],
)
def test_payloads_of_all_versions_become_the_current_event(event_type: str, payload: str) -> None:
    assert with_upcasters(*STEPS).decode(1, event_type, payload) == HEL
    assert with_upcasters(*reversed(STEPS)).decode(1, event_type, payload) == HEL


def test_a_payload_is_converted_step_by_step() -> None:
    steps: list[tuple[object, object]] = []

    def noted(upcaster: Upcaster) -> Upcaster:
        def lift(payload: dict[str, Any]) -> dict[str, Any]:
            steps.append((payload["type"], payload.get("schema_version")))
            return upcaster.lift(payload)

        return Upcaster(upcaster.event_type, upcaster.from_version, lift)

    codec = with_upcasters(*map(noted, STEPS))

    assert codec.decode(1, "StationTitled", TITLED_1) == HEL
    assert steps == [("StationTitled", None), ("StationRenamed", None), ("StationRenamed", 2)]


def test_events_of_all_versions_are_replayed_from_one_log(database: Database) -> None:
    store: EventStore[Any] = EventStore(database.engine, with_upcasters(*STEPS))
    rows = [("StationTitled", TITLED_1), ("StationRenamed", RENAMED_1), ("StationRenamed", RENAMED_2)]
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            [
                {"sequence": number, "event_type": event_type, "payload": payload, "stored_at": STORED_AT}
                for number, (event_type, payload) in enumerate(rows, 1)
            ],
        )

    (current, other) = store.append_all([HEL, TIDES[2]])

    assert [(sequence, event) for sequence, event, _ in store.replay_all()] == [
        *((number, HEL) for number in (1, 2, 3, 4)),
        (5, TIDES[2]),
    ]
    assert (current.sequence, other.sequence) == (4, 5)
    with database.engine.connect() as connection:  # the log itself is never rewritten
        assert connection.scalars(select(log.c.payload).order_by(log.c.sequence)).all()[:4] == [
            TITLED_1,
            RENAMED_1,
            RENAMED_2,
            RENAMED_3,
        ]
    store.close()


def test_current_payloads_are_not_changed() -> None:
    def refuse(payload: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError(payload)

    codec = with_upcasters(*(Upcaster(step.event_type, step.from_version, refuse) for step in STEPS))

    assert codec.encode([HEL]) == (["StationRenamed"], [RENAMED_3])
    assert codec.decode(1, "StationRenamed", RENAMED_3) == HEL
    assert codec.decode(1, "StationClosed", '{"type":"StationClosed","station":"hel"}') == StationClosed(station="hel")


def test_a_missing_upcaster_is_an_error() -> None:
    codec = with_upcasters(STEPS[0], STEPS[2])

    for event_type, payload in [("StationTitled", TITLED_1), ("StationRenamed", RENAMED_1)]:
        assert "is of version 1, and no upcaster lifts that" in decode_error(codec, event_type, payload).reason
    assert codec.decode(1, "StationRenamed", RENAMED_2) == HEL


def test_an_old_payload_whose_fields_fit_the_current_class_is_not_read_as_current() -> None:
    class Paid(BaseModel):
        type: Literal["Paid"] = "Paid"
        schema_version: Literal[3] = 3
        amount: int  # cents; version 1 had whole crowns

    codec = EventCodec[Paid](Paid, upcasters=[Upcaster("Paid", 2, lambda payload: payload | {"schema_version": 3})])

    decode_error(codec, "Paid", '{"type":"Paid","amount":5}')


def test_a_payload_of_a_newer_version_is_an_error() -> None:
    payload = RENAMED_3.replace("3", "4", 1)

    reason = decode_error(with_upcasters(*STEPS), "StationRenamed", payload).reason
    assert "is of version 4, and this program knows version 3" in reason


def failing(error: Exception) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def lift(payload: dict[str, Any]) -> dict[str, Any]:
        raise error

    return lift


@pytest.mark.parametrize(
    "error", [KeyError(SECRET), ValueError(SECRET), TypeError(SECRET), EventDecodeError(1, "x", SECRET)]
)
def test_the_error_of_a_failing_upcaster_does_not_show_the_payload(error: Exception) -> None:
    codec = with_upcasters(STEPS[1], Upcaster("StationRenamed", 2, failing(error)))

    told = decode_error(codec, "StationRenamed", RENAMED_1.replace("Hel", SECRET))

    said = f"the upcaster of StationRenamed from version 2 failed with {type(error).__name__} at {__file__}:"
    assert re.fullmatch(rf"{re.escape(said)}\d+", told.reason)


WRONG_RESULTS: dict[str, Any] = {
    "nothing": None,
    "number": 3,
    "text": SECRET,
    "list": [SECRET],
    "no fields": {},
    "no type": {"schema_version": 3, "station_id": SECRET, "names": {}},
    "unknown type": {"type": "StationPainted", "schema_version": 3, "station_id": SECRET},
    "field missing": {"type": "StationRenamed", "schema_version": 3, "station_id": SECRET},
    "type that is no text": {"type": [SECRET], "schema_version": 3},
    "version that is no number": {"type": "StationRenamed", "schema_version": [SECRET]},
    "object": {"type": "StationRenamed", "schema_version": 3, "station_id": object(), "names": {"pl": SECRET}},
    "lone surrogate": {"type": "StationRenamed", "schema_version": 3, "station_id": "\ud800" + SECRET, "names": {}},
}


@pytest.mark.parametrize("result", WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_an_upcaster_that_does_not_return_an_event_is_an_error(result: Any) -> None:
    codec = with_upcasters(Upcaster("StationRenamed", 2, lambda _: result))

    decode_error(codec, "StationRenamed", RENAMED_2.replace("Hel", SECRET))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (SECRET, "invalid JSON"),
        ("", "invalid JSON"),
        (RENAMED_1[:-1], "invalid JSON"),
        ("[" * 1_000_000, "invalid JSON"),
        (f'["{SECRET}"]', "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", ""),
        (f'{{"type":["{SECRET}"],"station_id":"hel"}}', ""),
        (RENAMED_2.replace("2", f'{{"{SECRET}":1}}', 1), ""),
    ],
    ids=["no JSON", "nothing", "cut off", "too deep", "list", "null", "no field", "list as type", "object as version"],
)
def test_a_payload_that_upcasters_cannot_convert_is_an_error(payload: str, reason: str) -> None:
    assert reason in decode_error(with_upcasters(*STEPS), "StationRenamed", payload).reason


def test_a_payload_of_another_type_than_its_column_is_an_error_with_upcasters_too() -> None:
    codec = with_upcasters(*STEPS)

    for event_type in ("StationRenamed", "StationTitled"):
        decode_error(codec, event_type, f'{{"type":"StationClosed","station":"{SECRET}"}}')
    decode_error(codec, "StationClosed", RENAMED_1)


def test_upcasters_in_a_cycle_are_an_error() -> None:
    codec = with_upcasters(
        Upcaster("StationRenamed", 1, lambda payload: payload | {"schema_version": 2}),
        Upcaster("StationRenamed", 2, lambda payload: payload | {"schema_version": 1}),
    )

    reason = decode_error(codec, "StationRenamed", RENAMED_1.replace("Hel", SECRET)).reason

    assert reason == "the upcasters go in a circle at StationRenamed version 1: each sets the next schema_version"


def test_an_upcaster_that_keeps_the_old_version_is_an_error() -> None:
    codec = with_upcasters(Upcaster("StationRenamed", 2, dict))

    assert "in a circle at StationRenamed version 2" in decode_error(codec, "StationRenamed", RENAMED_2).reason


def test_two_upcasters_for_the_same_version_are_refused() -> None:
    with pytest.raises(ValueError, match="two upcasters lift StationRenamed from version 1"):
        with_upcasters(STEPS[1], STEPS[1])


@pytest.mark.parametrize(("event_type", "version"), [("StationClosed", 1), ("StationRenamed", 3)])
def test_an_upcaster_from_the_current_version_is_refused_with_the_remedy(event_type: str, version: int) -> None:
    with pytest.raises(ValueError, match=f"lifts {event_type} from version {version}") as caught:
        with_upcasters(*STEPS, Upcaster(event_type, version, dict))

    assert f"schema_version: Literal[{version + 1}] = {version + 1}" in str(caught.value)


def test_errors_do_not_show_keys_of_a_payload() -> None:
    payload = RENAMED_3.replace('{"pl":"Hel"}', f'{{"{SECRET}":1}}')

    assert "names" in decode_error(with_upcasters(), "StationRenamed", payload).reason
