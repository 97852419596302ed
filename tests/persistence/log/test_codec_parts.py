"""A codec that includes another one, for a part of its union."""

from typing import Any

import pytest
from helpers.tide_events import StationClosed, TideForecast, TideMeasured

from peon.persistence import EventCodec, Upcaster

LIFT = Upcaster("tide.forecast", 1, lambda fields: {**fields, "type": "TideForecast"})
OTHER_LIFT = Upcaster("station.shut", 1, lambda fields: {**fields, "type": "StationClosed"})


def checks(name: str, into: list[str]) -> Any:
    return lambda event: into.append(f"{name}:{event.type}")


def test_a_codec_has_the_tags_upcasters_and_checks_of_its_parts() -> None:
    checked: list[str] = []
    whole = EventCodec(
        TideForecast | TideMeasured | StationClosed, check=checks("whole", checked), upcasters=[OTHER_LIFT], tags=["by"]
    )
    forecasts = EventCodec(TideForecast, check=checks("forecasts", checked), upcasters=[LIFT])
    stations = EventCodec(StationClosed, tags=["station"])

    codec = whole.including(forecasts).including(stations)

    codec.encode([TideForecast(metres=1.0), TideMeasured(metres=2.0), StationClosed(station="Hel")])
    assert checked == ["forecasts:TideForecast", "whole:tide.measured"]
    assert codec.tags == {"by", "station"}
    assert codec.decode(1, "tide.forecast", '{"type":"tide.forecast","metres":1.0}') == TideForecast(metres=1.0)
    assert codec.decode(1, "station.shut", '{"type":"station.shut","station":"Hel"}') == StationClosed(station="Hel")
    assert whole.tags == {"by"}


def test_a_part_can_be_included_twice_but_not_contradicted() -> None:
    whole = EventCodec(TideForecast | StationClosed)
    part = EventCodec(TideForecast, upcasters=[LIFT])
    other = EventCodec(TideForecast, upcasters=[Upcaster("tide.forecast", 1, dict)])

    assert whole.including(part).including(part).encode([TideForecast(metres=1.0)])[0] == ["TideForecast"]
    with pytest.raises(ValueError, match=r"two upcasters lift tide\.forecast from version 1"):
        whole.including(part).including(other)
