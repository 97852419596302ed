"""Codecs for an application's own events: every way to write a union, and what is refused."""

import sys
import typing
from typing import Annotated, Any, Literal, Union

import pytest
from helpers.tide_events import TIDES, StationClosed, TideForecast, TideMeasured
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from peon.persistence import (
    Database,
    EventCodec,
    EventEncodeError,
    EventStore,
)

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


@pytest.mark.parametrize("union", UNIONS.values(), ids=UNIONS)
def test_every_way_to_write_a_union_is_understood(union: Any) -> None:
    codec: EventCodec[Any] = EventCodec(union)

    columns, payloads = codec.encode(TIDES)

    assert columns == ["TideForecast", "tide.measured", "StationClosed"]
    assert [codec.decode(1, *row) for row in zip(columns, payloads, strict=True)] == TIDES


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the `type` statement needs Python 3.12")
def test_the_type_statement_is_understood() -> None:
    # Calls the class directly, because older Pythons cannot parse the statement.
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
