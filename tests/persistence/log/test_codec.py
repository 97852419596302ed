import re
import sys
import traceback
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Union
from uuid import UUID

import pytest
from helpers.event_strategies import CONTENT_CLASSES, EVENT_CLASSES, orchestration_events
from hypothesis import given, settings
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, TypeAdapter, create_model, field_serializer
from sqlalchemy import URL, insert, select, text
from typing_extensions import TypeAliasType

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    OrchestrationEvent,
    ProjectRenamed,
    ToolCallContent,
    event_type_name,
)
from peon.persistence import (
    Database,
    EventCodec,
    EventDecodeError,
    EventEncodeError,
    EventStore,
    UndecodableEvent,
    Upcaster,
)
from peon.persistence.log.codec import orchestration_codec
from peon.persistence.schema import events as log


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


RECORDED = Path(__file__).parents[2] / "data" / "payloads" / "orchestration_v1.jsonl"
# Not splitlines: one of the payloads holds U+2028, which ends a line for Python, but not in JSON Lines.
PAYLOADS = RECORDED.read_bytes().decode().removesuffix("\n").split("\n")
EVENT: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)

SECRET = "5a1t-0f-the-5ea"  # noqa: S105
STORED_AT = "2025-03-14T09:26:53.589793Z"
ONE = UUID(int=1)


def type_of(payload: str) -> str:
    return event_type_name(EVENT.validate_json(payload))


every_recorded_payload = pytest.mark.parametrize(
    "payload", PAYLOADS, ids=[f"{line}-{type_of(payload)}" for line, payload in enumerate(PAYLOADS, 1)]
)


def assert_secret_is_kept(error: BaseException) -> None:
    for shown in (str(error), repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in shown


def decode_error(codec: EventCodec[Any], event_type: str, payload: str) -> EventDecodeError:
    with pytest.raises(EventDecodeError) as caught:
        codec.decode(7, event_type, payload)
    error = caught.value
    assert (error.sequence, error.event_type) == (7, event_type)
    assert str(error).startswith(f"event 7 ({event_type}) cannot be decoded: {error.reason}")
    assert_secret_is_kept(error)
    return error


# The format of the log, which is for ever


def test_a_payload_is_recorded_for_every_event_and_every_kind_of_content() -> None:
    recorded = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert {type(event) for event in recorded} == set(EVENT_CLASSES)
    assert {type(event.content) for event in recorded if isinstance(event, MessageAppended)} == set(CONTENT_CLASSES)


@every_recorded_payload
def test_a_recorded_payload_is_read_and_written_again_to_the_letter(payload: str) -> None:
    event = orchestration_codec.decode(1, type_of(payload), payload)

    assert orchestration_codec.encode([event]) == ([type_of(payload)], [payload])


def test_recorded_payloads_in_a_database_are_read_and_stored_again_to_the_letter(database: Database) -> None:
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
def test_the_payload_alone_tells_the_whole_event(payload: str) -> None:
    event = orchestration_codec.decode(1, type_of(payload), payload)

    (written,) = orchestration_codec.encode([event])[1]

    # repr tells 1 from 1.0 and from True; == does not.
    assert repr(EVENT.validate_json(written)) == repr(event)
    assert EVENT.validate_json(written) == event


def test_columns_are_in_the_order_of_the_events() -> None:
    events = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert orchestration_codec.encode(events) == ([type_of(payload) for payload in PAYLOADS], PAYLOADS)
    assert orchestration_codec.encode([]) == ([], [])


@given(event=orchestration_events)
@settings(deadline=None, max_examples=50)
def test_what_is_decoded_is_what_was_encoded(event: OrchestrationEvent) -> None:
    (column,), (payload,) = orchestration_codec.encode([event])

    decoded = orchestration_codec.decode(1, column, payload)

    assert decoded == event
    assert repr(decoded) == repr(event)
    assert orchestration_codec.encode([decoded]) == ([column], [payload])


def test_the_check_by_default_takes_every_event_of_the_domain() -> None:
    """The domain's codec has a cheaper check of its own."""
    codec: EventCodec[OrchestrationEvent] = EventCodec(OrchestrationEvent)
    events = [EVENT.validate_json(payload) for payload in PAYLOADS]

    assert codec.encode(events)[1] == PAYLOADS


# What cannot be decoded

RENAMED = f'{{"type":"ProjectRenamed","occurred_at":"2025-03-14T09:26:53Z","project_id":"{ONE}","name":"{SECRET}"}}'
APPROVAL = (
    '{"type":"ApprovalRequested","occurred_at":"2025-03-14T09:26:53Z",'
    f'"approval_id":"{ONE}","turn_id":"{ONE}","thread_id":"{ONE}","action":"{SECRET}","detail":DETAIL}}'
)
STATUS = (
    f'{{"type":"ThreadStatusChanged","occurred_at":"2025-03-14T09:26:53Z","thread_id":"{ONE}","status":"idle",'
    f'"error":"{SECRET}"}}'
)
MESSAGE = (
    '{"type":"MessageAppended","occurred_at":"2025-03-14T09:26:53Z",'
    f'"message_id":"{ONE}","turn_id":"{ONE}","thread_id":"{ONE}","role":"user","content":CONTENT}}'
)

UNDECODABLE = {
    "unknown type": ("ProjectPainted", RENAMED, "no event of this type is known; it may come from a newer version"),
    "type in another case": ("projectrenamed", RENAMED, "no event of this type is known"),
    "no type": ("", RENAMED, "no event of this type is known"),
    "payload of another type": ("ProjectCreated", RENAMED, "type: Input should be 'ProjectCreated'"),
    "payload of another type that has the same fields": (
        "TurnCompleted",
        f'{{"type":"TurnInterrupted","occurred_at":"2025-03-14T09:26:53Z","turn_id":"{ONE}","thread_id":"{ONE}"}}',
        "type: Input should be 'TurnCompleted'",
    ),
    "nothing": ("ProjectRenamed", "", "Invalid JSON"),
    "not JSON": ("ProjectRenamed", SECRET, "Invalid JSON"),
    "cut off": ("ProjectRenamed", RENAMED[:-3], "Invalid JSON"),
    "two values": ("ProjectRenamed", RENAMED + RENAMED, "Invalid JSON"),
    "null": ("ProjectRenamed", "null", "should be an object"),
    "text": ("ProjectRenamed", f'"{SECRET}"', "should be an object"),
    "list": ("ProjectRenamed", f'["{SECRET}"]', "should be an object"),
    "field missing": ("ProjectRenamed", RENAMED.replace(f',"name":"{SECRET}"', ""), "name: Field required"),
    "field of a wrong type": ("ProjectRenamed", RENAMED.replace('"name":', '"name":1,"path":'), "name: Input should"),
    "field that is unknown": (
        "ProjectRenamed",
        RENAMED.replace("}", ',"x":1}'),
        "(unknown): Extra inputs are not permitted",
    ),
    "not a UUID": ("ProjectRenamed", RENAMED.replace(str(ONE), SECRET), "project_id: Input should be a valid UUID"),
    "naive time": ("ProjectRenamed", RENAMED.replace("53Z", "53"), "occurred_at: Input should have timezone info"),
    "not a time": ("ProjectRenamed", RENAMED.replace("2025", SECRET), "occurred_at: Input should be a valid datetime"),
    "time out of range in UTC": (
        "ProjectRenamed",
        RENAMED.replace("2025-03-14T09:26:53Z", "0001-01-01T00:00:00+01:00"),
        "out of range in UTC",
    ),
    "rule of two fields broken": ("ThreadStatusChanged", STATUS, "'error' is given if and only if"),
    "unknown role": (
        "MessageAppended",
        MESSAGE.replace('"user"', f'"{SECRET}"').replace("CONTENT", '{"type":"text","text":""}'),
        "role: Input should be 'user'",
    ),
    "content of no kind": ("MessageAppended", MESSAGE.replace("CONTENT", '{"text":"x"}'), "content: Unable to extract"),
    "content with a wrong field": (
        "MessageAppended",
        MESSAGE.replace("CONTENT", f'{{"type":"text","text":["{SECRET}"]}}'),
        "content.text.text: Input should be a valid string",
    ),
    "nested too deeply": ("ApprovalRequested", APPROVAL.replace("DETAIL", "[" * 1_000 + "]" * 1_000), "recursion"),
    "nested without an end": ("ApprovalRequested", APPROVAL.replace("DETAIL", "[" * 1_000_000), "recursion"),
    "integer too large": ("ApprovalRequested", APPROVAL.replace("DETAIL", "1" * 5_000), "number out of range"),
}


@pytest.mark.parametrize(("event_type", "payload", "reason"), UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_cannot_be_decoded_is_told_without_the_payload(event_type: str, payload: str, reason: str) -> None:
    error = decode_error(orchestration_codec, event_type, payload)

    assert reason in error.reason
    assert len(str(error)) < 500


def test_an_unknown_kind_of_content_is_told_without_the_payload() -> None:
    payload = MESSAGE.replace("CONTENT", f'{{"type":"{SECRET}","text":"x"}}')

    assert decode_error(orchestration_codec, "MessageAppended", payload).reason.startswith("content: ")


# Unions of other events


class TideForecast(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["TideForecast"] = "TideForecast"
    metres: float


class TideMeasured(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["tide.measured"] = "tide.measured"
    metres: float
    by: str = "gauge"


class StationClosed(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["StationClosed"] = "StationClosed"
    station: str


Tide = TideForecast | TideMeasured
TideAlias = TypeAliasType("TideAlias", TideForecast | TideMeasured)
NestedAlias = TypeAliasType("NestedAlias", TideAlias | StationClosed)
AnnotatedAlias = TypeAliasType("AnnotatedAlias", Annotated[Tide, Field(discriminator="type")])

UNIONS = {
    "Union": Union[TideForecast, TideMeasured, StationClosed],  # noqa: UP007
    "|": TideForecast | TideMeasured | StationClosed,
    "Annotated": Annotated[TideForecast | TideMeasured | StationClosed, Field(discriminator="type")],
    "Annotated twice": Annotated[Annotated[TideForecast | TideMeasured | StationClosed, "tides"], Field()],
    "nested": Union[Annotated[Tide, Field(discriminator="type")], StationClosed],  # noqa: UP007
    "nested twice": Annotated[Annotated[Annotated[TideForecast, "x"] | TideMeasured, "y"] | StationClosed, "z"],
    "alias": TypeAliasType("Alias", TideForecast | TideMeasured | StationClosed),
    "alias of aliases": NestedAlias,
    "alias of Annotated": TypeAliasType("Alias", AnnotatedAlias | StationClosed),
    "Annotated alias": Annotated[NestedAlias, Field(discriminator="type")],
}

TIDES = [TideForecast(metres=0.1), TideMeasured(metres=-2.0, by="eye"), StationClosed(station="Hel")]


@pytest.mark.parametrize("union", UNIONS.values(), ids=UNIONS)
def test_every_way_to_write_a_union_is_understood(union: Any) -> None:
    codec: EventCodec[Any] = EventCodec(union)

    columns, payloads = codec.encode(TIDES)

    assert columns == ["TideForecast", "tide.measured", "StationClosed"]
    assert [codec.decode(1, *row) for row in zip(columns, payloads, strict=True)] == TIDES


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement came with Python 3.12")
def test_the_type_statement_is_understood() -> None:
    # Made as the statement makes it, which older Pythons could not parse.
    alias = typing.TypeAliasType("Tides", TideForecast | TideMeasured | StationClosed)  # type: ignore[attr-defined]

    codec: EventCodec[Any] = EventCodec(alias)

    assert codec.encode(TIDES)[0] == ["TideForecast", "tide.measured", "StationClosed"]


def test_a_single_class_is_a_union_too() -> None:
    codec = EventCodec[StationClosed](StationClosed)

    columns, payloads = codec.encode([StationClosed(station="Hel")])

    assert (columns, payloads) == (["StationClosed"], ['{"type":"StationClosed","station":"Hel"}'])
    assert codec.decode(1, *columns, *payloads) == StationClosed(station="Hel")


def test_an_event_of_another_union_is_refused() -> None:
    codec = EventCodec[Any](TideForecast | StationClosed)

    with pytest.raises(EventEncodeError, match="its class is not in the codec's union") as caught:
        codec.encode([TIDES[0], TIDES[1], TIDES[2]])

    assert (caught.value.index, caught.value.event_type) == (1, "TideMeasured")


def test_events_of_another_union_are_stored_and_replayed(database: Database) -> None:
    store: EventStore[Any] = EventStore(database.engine, EventCodec(UNIONS["Annotated"]))

    stored = store.append_all(TIDES)

    assert store.replay_all() == stored
    assert [event for _, event, _ in stored] == TIDES
    assert [type(event) for _, event, _ in store.replay_all()] == [type(event) for event in TIDES]


class Untagged(BaseModel):
    metres: float


class TaggedByAnyText(BaseModel):
    type: str = "TaggedByAnyText"


class TaggedTwice(BaseModel):
    type: Literal["TaggedTwice", "TaggedOnce"] = "TaggedTwice"


class TaggedByANumber(BaseModel):
    type: Literal[1] = 1


class NoModel:
    type: Literal["NoModel"] = "NoModel"


@pytest.mark.parametrize(
    "member", [Untagged, TaggedByAnyText, TaggedTwice, TaggedByANumber, BaseModel, int, dict, type(None), NoModel]
)
def test_a_member_without_a_fixed_type_is_refused(member: type) -> None:
    for union in (member, Union[TideForecast, member]):  # noqa: UP007
        with pytest.raises(TypeError, match=f"{member.__name__} is not an event: an event has a field"):
            EventCodec(union)


def test_a_tag_that_two_members_claim_is_refused() -> None:
    class TideForecast2(BaseModel):
        type: Literal["TideForecast"] = "TideForecast"

    with pytest.raises(ValueError, match="two members of the union have the type TideForecast"):
        EventCodec(TideForecast | StationClosed | TideForecast2)


# Models that lose what they are given


class Measured(BaseModel):
    type: Literal["Measured"] = "Measured"
    metres: float = 0.0
    raw: bytes = b""
    hidden: str = Field(default="", exclude=True)
    extra: Any = None
    at: datetime = datetime(2025, 3, 14, tzinfo=UTC)
    rounded: float = 0.0
    amount: Decimal = Decimal(0)

    @field_serializer("rounded")
    def _round(self, value: float) -> float:
        return round(value, 1)


class Renaming(BaseModel):
    """Written by its fields' names, and read by their aliases."""

    type: Literal["Renaming"] = "Renaming"
    old: str = Field(default="", validation_alias="old_name")
    new: str = Field(validation_alias="new_name")


def nested(levels: int) -> Any:
    value: Any = SECRET
    for _ in range(levels):
        value = [value]
    return value


LOSSES: dict[str, BaseModel] = {
    "NaN": Measured(metres=float("nan")),
    "infinity": Measured(metres=float("-inf")),
    "NaN in Any": Measured(extra=[float("nan")]),
    "bytes that are not UTF-8": Measured(raw=b"\xff\xfe"),
    "excluded field": Measured(hidden=SECRET),
    "tuple in Any": Measured(extra=(1, 2)),
    "set in Any": Measured(extra={1, 2}),
    "bytes in Any": Measured(extra=SECRET.encode()),
    "time in Any": Measured(extra=datetime(2025, 3, 14, tzinfo=UTC)),
    "number as a key": Measured(extra={1: SECRET}),
    "object": Measured(extra=object()),
    "model in Any": Measured(extra=StationClosed(station=SECRET)),
    "serializer that rounds": Measured(rounded=0.123),
    "lone surrogate": Measured(extra="\ud800" + SECRET),
    "integer too large": Measured(extra=10**5_000),
    "nested too deeply": Measured(extra=nested(300)),
    "alias": Renaming(old_name=SECRET, new_name=""),
    "subclass of an event": type("Measured", (Measured,), {})(),
    "changed after validation": Measured().model_copy(update={"metres": SECRET}),
    "field missing": Renaming.model_construct(old=SECRET),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("event", LOSSES.values(), ids=LOSSES)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_would_not_come_back_equal_is_refused_by_default(event: BaseModel, sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, projections=False) as database:
        store: EventStore[Any] = EventStore(database.engine, EventCodec(Measured | Renaming))
        (before,) = store.append_all([Measured(metres=1.5, raw="ł".encode(), extra={"a": [1, 2.5, None, True]})])

        with pytest.raises(EventEncodeError) as caught:
            store.append_all([Measured(metres=2.0), event])

        assert (caught.value.index, caught.value.event_type) == (1, type(event).__name__)
        assert_secret_is_kept(caught.value)
        assert store.replay_all() == [before]
        (after,) = store.append_all([Measured(metres=3.0)])
        assert after.sequence == 2
        store.close()


def test_an_own_check_decides_alone() -> None:
    seen: list[BaseModel] = []

    def check(event: Measured) -> None:
        seen.append(event)
        if event.metres < 0:
            raise ValueError(SECRET)

    codec = EventCodec[Measured](Measured, check=check)
    fine, excluded = Measured(metres=1.0), Measured(hidden=SECRET)

    codec.encode([fine, excluded])
    assert seen == [fine, excluded]
    with pytest.raises(EventEncodeError) as caught:
        codec.encode([Measured(metres=-1.0)])
    assert_secret_is_kept(caught.value)


# Upcasters


class StationRenamed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["StationRenamed"] = "StationRenamed"
    schema_version: Literal[3] = 3
    station_id: str
    names: dict[str, str]


# As the versions 1, 2 and 3 of the event were written; version 1 once had another name.
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


def test_a_payload_is_lifted_step_by_step() -> None:
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


def test_current_payloads_are_not_touched() -> None:
    def refuse(payload: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError(payload)

    codec = with_upcasters(*(Upcaster(step.event_type, step.from_version, refuse) for step in STEPS))

    assert codec.encode([HEL]) == (["StationRenamed"], [RENAMED_3])
    assert codec.decode(1, "StationRenamed", RENAMED_3) == HEL
    assert codec.decode(1, "StationClosed", '{"type":"StationClosed","station":"hel"}') == StationClosed(station="hel")


def test_a_missing_step_is_told() -> None:
    codec = with_upcasters(STEPS[0], STEPS[2])

    for event_type, payload in [("StationTitled", TITLED_1), ("StationRenamed", RENAMED_1)]:
        assert "is of version 1, and no upcaster lifts that" in decode_error(codec, event_type, payload).reason
    assert codec.decode(1, "StationRenamed", RENAMED_2) == HEL


def test_an_old_payload_is_not_taken_for_a_current_one_because_its_fields_fit() -> None:
    class Paid(BaseModel):
        type: Literal["Paid"] = "Paid"
        schema_version: Literal[3] = 3
        amount: int  # cents; version 1 had whole crowns

    codec = EventCodec[Paid](Paid, upcasters=[Upcaster("Paid", 2, lambda payload: payload | {"schema_version": 3})])

    decode_error(codec, "Paid", '{"type":"Paid","amount":5}')


def test_a_payload_of_a_newer_version_is_told() -> None:
    payload = RENAMED_3.replace("3", "4", 1)

    assert "is of version 4, and no upcaster" in decode_error(with_upcasters(*STEPS), "StationRenamed", payload).reason


def failing(error: Exception) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def lift(payload: dict[str, Any]) -> dict[str, Any]:
        raise error

    return lift


@pytest.mark.parametrize(
    "error", [KeyError(SECRET), ValueError(SECRET), TypeError(SECRET), EventDecodeError(1, "x", SECRET)]
)
def test_a_failing_upcaster_is_named_without_the_payload(error: Exception) -> None:
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
def test_an_upcaster_that_returns_no_event_is_told(result: Any) -> None:
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
def test_what_no_upcaster_can_lift_is_told(payload: str, reason: str) -> None:
    assert reason in decode_error(with_upcasters(*STEPS), "StationRenamed", payload).reason


def test_a_payload_of_another_type_than_the_column_is_told_where_there_are_upcasters_too() -> None:
    codec = with_upcasters(*STEPS)

    for event_type in ("StationRenamed", "StationTitled"):
        decode_error(codec, event_type, f'{{"type":"StationClosed","station":"{SECRET}"}}')
    decode_error(codec, "StationClosed", RENAMED_1)


def test_upcasters_that_go_in_a_circle_are_told() -> None:
    codec = with_upcasters(
        Upcaster("StationRenamed", 1, lambda payload: payload | {"schema_version": 2}),
        Upcaster("StationRenamed", 2, lambda payload: payload | {"schema_version": 1}),
    )

    reason = decode_error(codec, "StationRenamed", RENAMED_1.replace("Hel", SECRET)).reason

    assert reason == "the upcasters go in a circle at StationRenamed version 1: each sets the next schema_version"


def test_an_upcaster_that_forgets_the_version_is_told() -> None:
    codec = with_upcasters(Upcaster("StationRenamed", 2, dict))

    assert "in a circle at StationRenamed version 2" in decode_error(codec, "StationRenamed", RENAMED_2).reason


def test_two_upcasters_for_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="two upcasters lift StationRenamed from version 1"):
        with_upcasters(STEPS[1], STEPS[1])


@pytest.mark.parametrize(("event_type", "version"), [("StationClosed", 1), ("StationRenamed", 3)])
def test_an_upcaster_from_the_current_version_is_refused_with_the_remedy(event_type: str, version: int) -> None:
    with pytest.raises(ValueError, match=f"lifts {event_type} from version {version}") as caught:
        with_upcasters(*STEPS, Upcaster(event_type, version, dict))

    assert f"schema_version: Literal[{version + 1}] = {version + 1}" in str(caught.value)


def test_keys_of_a_payload_are_not_told() -> None:
    payload = RENAMED_3.replace('{"pl":"Hel"}', f'{{"{SECRET}":1}}')

    assert "names" in decode_error(with_upcasters(), "StationRenamed", payload).reason


# undecodable="keep"

FINE = f'{{"type":"ProjectRenamed","occurred_at":"2025-03-14T09:26:53Z","project_id":"{ONE}","name":"łódź \\\\xff"}}'


def some_renamings(count: int) -> list[OrchestrationEvent]:
    return [ProjectRenamed(project_id=ONE, name=f"łódź {n} \\xff") for n in range(count)]


def insert_between_events(database: Database, row: str) -> list[Any]:
    """Puts a row where the store never would, between two events that it stored before and two stored after."""
    before = database.events.append_all(some_renamings(2))
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO events (sequence, event_type, payload, stored_at) VALUES (3, {row})")
    return before + database.events.append_all(some_renamings(2))


def assert_kept(database: Database, row: str, event_type: str, payload: str) -> UndecodableEvent:
    neighbours = insert_between_events(database, row)

    kept = database.events.replay_all(undecodable="keep")

    assert [sequence for sequence, _, _ in kept] == [1, 2, 3, 4, 5]
    assert kept[:2] + kept[3:] == neighbours
    event = kept[2].event
    assert isinstance(event, UndecodableEvent)
    assert (event.event_type, event.payload) == (event_type, payload)
    assert event.reason
    assert database.events.replay_from(4) == neighbours[2:]
    assert [(number, event) for number, event, _ in database.events.stream(after=2, limit=1, undecodable="keep")] == [
        (3, event)
    ]

    stream = database.events.stream()
    assert [next(stream), next(stream)] == neighbours[:2]
    with pytest.raises(EventDecodeError, match='undecodable="keep"') as caught:
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
def test_what_cannot_be_decoded_is_kept_in_its_place(database: Database, event_type: str, payload: str) -> None:
    row = f"'{event_type}', '{payload}', '{STORED_AT}'"

    assert_kept(database, row, event_type, payload)


@pytest.mark.parametrize("stored_at", ["", "yesterday", "2025-03-14T09:26:53", "2025-03-14T09:26:53+01:00"])
def test_an_event_without_a_moment_in_utc_is_kept_in_its_place(database: Database, stored_at: str) -> None:
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
def test_a_row_that_is_damaged_is_kept_in_its_place(sqlite_url: URL, row: str, event_type: str, payload: str) -> None:
    with Database.open(url=sqlite_url, projections=False) as database:
        assert_kept(database, row, event_type, payload)


def test_an_event_type_that_is_not_text_is_kept_in_its_place(sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, projections=False) as database:
        row = f"x'41ff', '{FINE}', '{STORED_AT}'"
        neighbours = insert_between_events(database, row)

        kept = database.events.replay_all(undecodable="keep")

        assert kept[:2] + kept[3:] == neighbours
        assert isinstance(kept[2].event, UndecodableEvent)
        assert isinstance(kept[2].event.event_type, str)
        assert kept[2].event.payload == FINE


@pytest.mark.parametrize("position", ["first", "later"])
def test_an_event_that_is_kept_has_its_own_moment(database: Database, position: str) -> None:
    if position == "later":
        database.events.append_all(some_renamings(1))
    with database.engine.begin() as connection:
        connection.execute(
            insert(log), {"sequence": 9, "event_type": "ProjectPainted", "payload": "{}", "stored_at": STORED_AT}
        )

    kept = database.events.replay_all(undecodable="keep")[-1]

    assert kept.stored_at == datetime(2025, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)


def test_many_damaged_rows_spoil_no_other(sqlite_url: URL) -> None:
    count = 2_500  # more than are fetched at once
    with Database.open(url=sqlite_url, projections=False) as database:
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
                    "INSERT INTO events (event_type, payload, stored_at) SELECT 'ProjectRenamed', "
                    "CASE i % 3 WHEN 0 THEN CAST(x'ff' AS TEXT) ELSE :fine END, :stored_at FROM n"
                ),
                {"count": count, "fine": FINE, "stored_at": STORED_AT},
            )

        kept = database.events.replay_all(undecodable="keep")

        assert [stored.sequence for stored in kept] == list(range(1, count + 1))
        fine = EVENT.validate_json(FINE)
        assert all(
            isinstance(event, UndecodableEvent) if sequence % 3 == 0 else event == fine for sequence, event, _ in kept
        )
        # The connection reads text as before.
        assert database.events.append_all([fine])[0] == database.events.replay_from(count + 1)[0]


def test_a_log_of_events_that_a_codec_does_not_know_can_be_read_by_it(database: Database) -> None:
    call = ToolCallContent(tool_call_id="1", name="run", arguments={"a": 1.0})
    database.events.append_all(
        [
            MessageAppended(message_id=ONE, turn_id=ONE, thread_id=ONE, role="assistant", content=call),
            ApprovalRequested(approval_id=ONE, turn_id=ONE, thread_id=ONE, action="run", detail=1.0),
        ]
    )
    other: EventStore[Any] = EventStore(database.engine, EventCodec(StationClosed))

    (closed,) = other.append_all([StationClosed(station="Hel")])

    kept = other.replay_all(undecodable="keep")
    assert [getattr(event, "event_type", None) for _, event, _ in kept] == [
        "MessageAppended",
        "ApprovalRequested",
        None,
    ]
    assert kept[2] == closed
    assert list(other.stream(event_types=["StationClosed"])) == [closed]
    other.close()


Named = NewType("Named", str)


class Course(StrEnum):
    SAILING = "sailing"


class Share(Enum):
    HALF = 0.5


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        Annotated[str, Field(min_length=1)] | None,
        Annotated[int | Annotated[UUID, Field()] | None, Field()],
        Literal["a", 1, None, Course.SAILING],
        Optional[Course],  # noqa: UP045 - another class than the union above
        Named,
        TypeAliasType("Alias", str | int),
    ],
)
def test_a_tag_is_a_field_of_text_or_integers_or_identifiers(annotation: Any) -> None:
    assert EventCodec(create_model("Tagged", type=(Literal["T"], "T"), tag=annotation), tags=["tag"]).tags == {"tag"}


@pytest.mark.parametrize(
    "annotation",
    [
        bool,
        float,
        Annotated[float, Field(gt=0)] | None,
        list[str],
        dict[str, str] | None,
        str | Annotated[list[str], Field(max_length=3)],
        Literal["a", True],
        Share,
        datetime,
        Decimal,
        Any,
        create_model("Nested"),
        TypeAliasType("Alias", list[str]),
    ],
)
def test_a_field_of_other_values_is_refused_as_a_tag(annotation: Any) -> None:
    """Nothing would ever match, and so no condition conflict."""
    with pytest.raises(ValueError, match="tag 'tag' is a field of neither text nor integers nor UUIDs alone in Tagged"):
        EventCodec(create_model("Tagged", type=(Literal["T"], "T"), tag=annotation), tags=["tag"])


def test_a_field_that_is_stored_under_an_alias_is_refused_as_a_tag() -> None:
    class Aliased(BaseModel):
        model_config = ConfigDict(
            serialize_by_alias=True, alias_generator=AliasGenerator(serialization_alias=str.upper)
        )
        type: Literal["A"] = Field("A", serialization_alias="type")
        course: str
        place: str = Field(serialization_alias="place")

    assert EventCodec(Aliased, tags=["place"]).tags == {"place"}
    with pytest.raises(ValueError, match="tag 'course' is stored as 'COURSE' by Aliased: a tag has no alias"):
        EventCodec(Aliased, tags=["course"])
