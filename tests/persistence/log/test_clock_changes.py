"""Times in the hours that a time zone repeats or skips, twice a year."""

from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from peon.persistence import CommandConflict, Database, EventCodec, EventEncodeError, EventStore
from peon.persistence.log.instants import equal_as_instants

BERLIN = ZoneInfo("Europe/Berlin")
REPEATED = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
REPEATED_LATER = REPEATED.replace(fold=1)
SKIPPED = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)
SKIPPED_LATER = SKIPPED.replace(fold=1)
USUAL = datetime(2026, 7, 1, 2, 30, tzinfo=BERLIN)

MOMENTS = [REPEATED, REPEATED_LATER, SKIPPED, SKIPPED_LATER, USUAL]
every_moment = pytest.mark.parametrize("moment", MOMENTS, ids=str)


@dataclass(frozen=True)
class Span:
    begin: AwareDatetime
    end: AwareDatetime


class Place(BaseModel):
    model_config = ConfigDict(frozen=True)
    seen: AwareDatetime


class Met(BaseModel):
    type: Literal["Met"] = "Met"
    at: AwareDatetime
    all: list[AwareDatetime] = []
    pair: tuple[AwareDatetime, int] | None = None
    by_time: dict[AwareDatetime, AwareDatetime] = Field(default_factory=dict)
    some: frozenset[AwareDatetime] = frozenset()
    place: Place | None = None
    span: Span | None = None


def met(moment: datetime) -> Met:
    return Met(
        at=moment,
        all=[moment],
        pair=(moment, 1),
        by_time={moment: moment},
        some=frozenset([moment]),
        place=Place(seen=moment),
        span=Span(moment, moment),
    )


@every_moment
def test_an_event_in_the_hour_of_the_clock_change_is_stored(database: Database, moment: datetime) -> None:
    store: EventStore[Met] = EventStore(database.engine, EventCodec(Met))
    store.append_all([met(moment)])
    (stored,) = store.replay_all()
    assert stored.event.at.astimezone(UTC) == moment.astimezone(UTC)
    assert stored.event.at.utcoffset() == moment.utcoffset()
    store.close()


@every_moment
def test_a_repeated_command_in_the_hour_of_the_clock_change_is_the_same(database: Database, moment: datetime) -> None:
    store: EventStore[Met] = EventStore(database.engine, EventCodec(Met))
    command = uuid4()
    stored = store.append_all([met(moment)], command_id=command)
    again = store.append_all([met(moment)], command_id=command)
    assert [each.sequence for each in again] == [each.sequence for each in stored] == [1]
    with pytest.raises(CommandConflict, match="has another at"):
        store.append_all([met(moment + timedelta(hours=2))], command_id=command)
    store.close()


def test_the_two_times_of_a_repeated_hour_are_different_commands(database: Database) -> None:
    store: EventStore[Met] = EventStore(database.engine, EventCodec(Met))
    command = uuid4()
    store.append_all([met(REPEATED)], command_id=command)
    with pytest.raises(CommandConflict, match="has another at"):
        store.append_all([met(REPEATED_LATER)], command_id=command)
    store.close()


def constant() -> datetime:
    return datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo.no_cache("Europe/Berlin"))


class Planned(BaseModel):
    type: Literal["Planned"] = "Planned"
    at: AwareDatetime = Field(default_factory=constant)


def test_a_field_whose_factory_always_gives_the_same_hour_is_part_of_the_command(database: Database) -> None:
    store: EventStore[Planned] = EventStore(database.engine, EventCodec(Planned))
    command = uuid4()
    store.append_all([Planned(at=USUAL)], command_id=command)
    with pytest.raises(CommandConflict, match="has another at"):
        store.append_all([Planned()], command_id=command)
    store.close()


class Loose(BaseModel):
    type: Literal["Loose"] = "Loose"
    at: AwareDatetime = REPEATED
    value: Any


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {1}, REPEATED, Place(seen=REPEATED), Span(REPEATED, REPEATED)])
def test_a_value_that_is_not_read_back_equal_is_still_refused_in_this_hour(memory: Database, value: Any) -> None:
    store: EventStore[Loose] = EventStore(memory.engine, EventCodec(Loose))
    with pytest.raises(EventEncodeError, match="what is read back is not equal to it"):
        store.append_all([Loose(value=value)])
    store.close()


Pair = namedtuple("Pair", "at number")
LAST_HOUR = datetime.max.replace(tzinfo=ZoneInfo("America/New_York"))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (REPEATED, REPEATED.astimezone(UTC), True),
        (REPEATED, REPEATED_LATER.astimezone(UTC), False),
        (REPEATED, REPEATED_LATER, True),  # of one zone, where Python ignores the fold
        (Pair(REPEATED, 1), (REPEATED.astimezone(UTC), 1), True),
        ({Place(seen=REPEATED)}, {Place(seen=REPEATED.astimezone(UTC))}, True),
        ([REPEATED], (REPEATED.astimezone(UTC),), False),
        (REPEATED.replace(tzinfo=None), REPEATED, False),
        (LAST_HOUR, LAST_HOUR, True),
        (LAST_HOUR, USUAL, False),
        (Span, Span, True),
        (1, 2, False),
    ],
)
def test_times_are_compared_as_instants(one: object, other: object, equal: bool) -> None:
    assert equal_as_instants(one, other) is equal


class OfOneName(BaseModel):
    """Compares itself by its name alone, which pydantic does not know."""

    name: str
    at: AwareDatetime

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OfOneName) and self.name == other.name

    __hash__ = None  # type: ignore[assignment]


def test_a_class_may_compare_in_its_own_way() -> None:
    one, same, other = (OfOneName(name=name, at=at) for name, at in [("a", REPEATED), ("a", USUAL), ("b", REPEATED)])
    assert equal_as_instants([one, REPEATED], [same, REPEATED.astimezone(UTC)])
    assert not equal_as_instants(one, other)
