"""Events whose payload would not decode to an equal event are refused."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
from helpers.secret import SECRET, assert_secret_is_kept
from helpers.tide_events import StationClosed, nested
from pydantic import BaseModel, Field, field_serializer
from sqlalchemy import URL

from peon.persistence import (
    Database,
    EventCodec,
    EventEncodeError,
    EventStore,
)


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
    """Is written with the names of its fields, and read with their aliases."""

    type: Literal["Renaming"] = "Renaming"
    old: str = Field(default="", validation_alias="old_name")
    new: str = Field(validation_alias="new_name")


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
def test_an_event_that_would_not_be_read_back_equal_is_refused_by_default(event: BaseModel, sqlite_url: URL) -> None:
    with Database.open(url=sqlite_url, maintain_projections=False) as database:
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


def test_a_custom_check_replaces_the_default_check() -> None:
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
