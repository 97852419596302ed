"""Which fields of events can be tags, and which queries an event can match."""

from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import pytest
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypeAliasType

from peon.persistence import EventCodec, EventQuery, Upcaster

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
        list[str],
        str | Annotated[list[str], Field(max_length=3)],
        set[UUID] | None,
        frozenset[Course | None],
        tuple[int, ...],
        tuple[str, Literal[1]],
        TypeAliasType("Names", list[Named]),
    ],
)
def test_fields_of_text_integers_or_identifiers_can_be_tags(annotation: Any) -> None:
    assert EventCodec(create_model("Tagged", type=(Literal["T"], "T"), tag=annotation), tags=["tag"]).tags == {"tag"}


@pytest.mark.parametrize(
    "annotation",
    [
        bool,
        float,
        Annotated[float, Field(gt=0)] | None,
        list,
        list[float],
        list[list[str]],
        list[str] | float,
        dict[str, str] | None,
        Literal["a", True],
        Share,
        datetime,
        Decimal,
        Any,
        create_model("Nested"),
        TypeAliasType("Alias", list[bool]),
    ],
)
def test_a_field_of_other_values_is_refused_as_a_tag(annotation: Any) -> None:
    """Such a tag would match nothing, so a condition on it would never conflict."""
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


class Paid(BaseModel):
    type: Literal["Paid"] = "Paid"
    account: str


class Noted(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: Literal["Noted"] = "Noted"


class Shared(BaseModel):
    type: Literal["Shared"] = "Shared"
    owners: list[str]


def same(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


CODEC: EventCodec[Any] = EventCodec(
    Annotated[Paid | Noted | Shared, Field(discriminator="type")],
    upcasters=[Upcaster("PaidInCash", from_version=1, lift=same)],
    tags=["account", "owners"],
)


@pytest.mark.parametrize(
    "query",
    [
        EventQuery(event_types=["PaidInCash"]),  # only an upcaster knows it, so its fields are unknown
        EventQuery(event_types=["PaidInCash"], tags={"account": "a", "owners": ["b", "c"]}),
        EventQuery(event_types=["Noted"], tags={"account": "a", "owners": "b"}),
        EventQuery(event_types=["Shared"], tags={"owners": ["a", "b"]}),
        EventQuery(event_types=["Shared", "Paid"], tags={"account": "a"}),  # some of the types suffice
        EventQuery(tags={"account": "a", "owners": ["b", "c"]}),
    ],
)
def test_a_query_that_a_stored_event_may_match_is_possible(query: EventQuery) -> None:
    CODEC.query_tags.require_possible(query)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (EventQuery(event_types=["PaidInCach"]), "'PaidInCach' is no event type .* did you mean 'PaidInCash'"),
        (EventQuery(event_types=["Paid"], tags={"owners": "a"}), "no event of type Paid has owners"),
        (EventQuery(tags={"account": ["a", "b"]}), "no event has 2 values of account"),
        (EventQuery(event_types=["Paid"], tags={"account": ["a", "b"]}), "of type Paid has 2 values of account"),
        (
            EventQuery(event_types=["Paid", "Shared"], tags={"account": "a", "owners": ["b", "c"]}),
            "no event of type Paid or Shared has account and 2 values of owners",
        ),
    ],
)
def test_a_query_that_no_stored_event_can_match_is_refused(query: EventQuery, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CODEC.query_tags.require_possible(query)
    CODEC.query_tags.require_possible(query, undecodable=True)
    with pytest.raises(ValueError, match="colour is not a tag of these events; the codec names account, owners"):
        CODEC.query_tags.require_possible(EventQuery(tags={"colour": "red"}), undecodable=True)
