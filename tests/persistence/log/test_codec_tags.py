"""Which fields of events can be tags, and which queries an event can match."""

from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import pytest
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypeAliasType

from peon.persistence import (
    EventCodec,
)

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
