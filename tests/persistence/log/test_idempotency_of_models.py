"""A repeated command is compared field by field, whatever models and collections its fields hold."""

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, RootModel

from peon.persistence import CommandConflict, Database, EventCodec, EventStore


class Label(BaseModel):
    model_config = ConfigDict(frozen=True)

    value: bool | int | float | str


class Name(RootModel[str]):
    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class Span:
    start: int
    end: bool | int


class Moments(BaseModel):
    """Has an equality that looks at a list, and a hash that does not."""

    id: int
    times: list[datetime]

    def __hash__(self) -> int:
        return self.id


class Colour:
    """An application's own type, whose `repr` differs for each object."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colour) and self.code == other.code

    __hash__ = None  # type: ignore[assignment]


class Labelled(BaseModel):
    type: Literal["Labelled"] = "Labelled"
    labels: frozenset[Label] = frozenset()
    groups: frozenset[frozenset[Label]] = frozenset()
    spans: set[Span] = set()
    names: set[Name] = set()
    moments: frozenset[Moments] = frozenset()
    queue: deque[bool | int] = deque()
    nested: dict[str, list[Label]] = {}
    colour: Annotated[
        Colour | None,
        PlainValidator(lambda value: Colour(value) if isinstance(value, int) else value),
        PlainSerializer(lambda colour: colour and colour.code),
    ] = None


@pytest.fixture
def labels(memory: Database) -> EventStore[Labelled]:
    return EventStore(memory.engine, EventCodec(Labelled))


LABELS = [Label(value="a"), Label(value=1), Label(value=2.5)]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": LABELS},
        {"groups": [frozenset(LABELS), frozenset(LABELS[:1])]},
        {"spans": [Span(1, 2), Span(2, 3)]},
        {"names": [Name("a"), Name("b")]},
        {"moments": [Moments(id=1, times=[NOON]), Moments(id=1, times=[])]},
        {"queue": deque([1, True])},
        {"nested": {"a": LABELS, "b": []}},
        {"colour": Colour(3)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_repeat_is_the_same_command(labels: EventStore[Labelled], fields: dict[str, Any]) -> None:
    command = uuid4()
    stored = labels.append_all([Labelled(**fields)], command_id=command)
    backwards = {
        name: value if isinstance(value, dict | deque | Colour) else value[::-1] for name, value in fields.items()
    }

    assert labels.append_all([Labelled(**backwards)], command_id=command) == stored


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"labels": LABELS}, {"labels": LABELS[1:]}),
        ({"labels": [Label(value=1)]}, {"labels": [Label(value=True)]}),
        ({"labels": [Label(value=1)]}, {"labels": [Label(value=1.0)]}),
        ({"groups": [frozenset([Label(value=1)])]}, {"groups": [frozenset([Label(value=True)])]}),
        ({"spans": [Span(1, 1)]}, {"spans": [Span(1, True)]}),
        ({"moments": [Moments(id=1, times=[NOON])]}, {"moments": [Moments(id=1, times=[])]}),
        ({"queue": deque([1])}, {"queue": deque([True])}),
        ({"nested": {"a": [Label(value=1)]}}, {"nested": {"a": [Label(value=True)]}}),
        ({"colour": Colour(3)}, {"colour": Colour(4)}),
    ],
)
def test_another_value_is_another_command(
    labels: EventStore[Labelled], before: dict[str, Any], now: dict[str, Any]
) -> None:
    command = uuid4()
    labels.append_all([Labelled(**before)], command_id=command)

    with pytest.raises(CommandConflict, match=f"has another {next(iter(now))}"):
        labels.append_all([Labelled(**now)], command_id=command)
