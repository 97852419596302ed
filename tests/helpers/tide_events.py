"""Events of an application about tides, and helpers that the tests of the codec share."""

from typing import Any, Literal
from uuid import UUID

import pytest
from helpers.secret import SECRET, assert_secret_is_kept
from pydantic import BaseModel, ConfigDict

from peon.persistence import (
    EventCodec,
    EventDecodeError,
)

STORED_AT = "2025-03-14T09:26:53.589793Z"
ONE = UUID(int=1)


def decode_error(codec: EventCodec[Any], event_type: str, payload: str) -> EventDecodeError:
    with pytest.raises(EventDecodeError) as caught:
        codec.decode(7, event_type, payload)
    error = caught.value
    assert (error.sequence, error.event_type) == (7, event_type)
    assert str(error).startswith(f"event 7 ({event_type}) cannot be decoded: {error.reason}")
    assert_secret_is_kept(error)
    return error


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


TIDES = [TideForecast(metres=0.1), TideMeasured(metres=-2.0, by="eye"), StationClosed(station="Hel")]


def nested(levels: int) -> Any:
    value: Any = SECRET
    for _ in range(levels):
        value = [value]
    return value
