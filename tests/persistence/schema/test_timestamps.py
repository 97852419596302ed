"""Times are stored as text in UTC that sorts like the times."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from helpers.event_strategies import moments
from hypothesis import given

from peon.persistence.schema.timestamps import format_timestamp, parse_timestamp


@given(moment=moments)
def test_any_time_is_read_back_in_utc(moment: datetime) -> None:
    text = format_timestamp(moment)

    assert len(text) == len("2026-01-02T03:04:05.000006Z")
    assert parse_timestamp(text) == moment
    assert parse_timestamp(text).tzinfo is UTC


@given(one=moments, other=moments)
def test_stored_texts_sort_like_their_times(one: datetime, other: datetime) -> None:
    assert (format_timestamp(one) < format_timestamp(other)) == (one < other)


def test_the_stored_text_is_iso_8601_of_fixed_width() -> None:
    moment = datetime(1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=-1)))

    assert format_timestamp(moment) == "0001-02-03T05:05:06.000000Z"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-02T03:04:05", "2026-01-02T03:04:05+01:00"])
def test_a_value_that_is_not_a_time_in_utc_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Invalid isoformat string|not in UTC"):
        parse_timestamp(text)
