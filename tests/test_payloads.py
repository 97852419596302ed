from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from helpers.event_strategies import json_objects, json_values, moments, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from peon.payloads import (
    MAXIMUM_INTEGER_BITS,
    MAXIMUM_JSON_DEPTH,
    JsonObject,
    JsonValue,
    UtcDatetime,
    exact_json,
    exact_json_object,
)

VALUE: TypeAdapter[Any] = TypeAdapter(JsonValue)
OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)
MOMENT: TypeAdapter[datetime] = TypeAdapter(UtcDatetime)

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)

LONE_SURROGATES = ["\ud800", "\udbff", "\udc00", "\udfff", "a\ud800b", "\ud83d\ude00"]


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    ONE = "one"


class Text(str):
    __slots__ = ()


class Integer(int):
    pass


class Real(float):
    pass


class List(list[Any]):
    pass


INEXACT = [
    float("nan"),
    float("inf"),
    float("-inf"),
    (),
    (1, 2),
    b"bytes",
    bytearray(b"bytes"),
    {1, 2},
    frozenset(),
    range(3),
    1j,
    Decimal("1.5"),
    UUID(int=1),
    date(2026, 1, 1),
    datetime(2026, 1, 1, tzinfo=UTC),
    timedelta(1),
    ...,
    int,
    Number.ONE,
    Word.ONE,
    Text("text"),
    Integer(1),
    Real(1.5),
    List(),
    OrderedDict(),
    {1: "a"},
    {1.5: "a"},
    {None: "a"},
    {True: "a"},
    {b"a": "a"},
    {("a",): "a"},
    {Text("a"): "a"},
    {Word.ONE: "a"},
    {Number.ONE: "a"},
    *LONE_SURROGATES,
    *({text: 1} for text in LONE_SURROGATES),
    2**MAXIMUM_INTEGER_BITS,
    -(2**MAXIMUM_INTEGER_BITS),
]

inexact_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(INEXACT) | st.lists(json_values, max_size=3).map(tuple) | st.binary(max_size=3) | moments,
    lambda inner: (
        st.tuples(json_values, inner, json_values).map(list)
        | st.builds(lambda others, key, value: {**others, key: value}, json_objects, texts, inner)
    ),
    max_leaves=3,
)


def same(left: object, right: object) -> bool:
    # Equality is not enough: 1 == 1.0 == True and 0.0 == -0.0.
    return repr(left) == repr(right)


def read_back(value: Any) -> Any:
    return VALUE.validate_json(VALUE.dump_json(VALUE.validate_python(value)))


def lists(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def objects(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def containers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [id(value), *(found for item in value.values() for found in containers(item))]
    if isinstance(value, list):
        return [id(value), *(found for item in value for found in containers(item))]
    return []


# Exact values


@settings(deadline=None)
@given(json_values)
def test_an_exact_value_is_returned_as_it_is(value: Any) -> None:
    assert same(exact_json(value), value)


@settings(deadline=None)
@given(json_values)
def test_an_exact_value_is_read_back_from_json_exactly(value: Any) -> None:
    assert same(read_back(value), value)


@settings(deadline=None)
@given(json_values)
def test_the_copy_shares_nothing_with_the_original(value: Any) -> None:
    original = {"value": value}
    assert not set(containers(exact_json(original))) & set(containers(original))


def test_a_later_change_of_the_original_does_not_change_the_copy() -> None:
    original: dict[str, Any] = {"list": [1, {"a": [2]}], "object": {"b": 3}}
    for copy in (exact_json(original), VALUE.validate_python(original), OBJECT.validate_python(original)):
        original["list"][1]["a"].append("later")
        original["object"]["later"] = 4
        original["list"].append("later")
        original["later"] = 5
        assert copy == {"list": [1, {"a": [2]}], "object": {"b": 3}}
        original = {"list": [1, {"a": [2]}], "object": {"b": 3}}


@pytest.mark.parametrize("bits", [64, 65, 128, 1_000, 10_000, MAXIMUM_INTEGER_BITS])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_integers_are_read_back(bits: int, sign: int) -> None:
    for magnitude in (2 ** (bits - 1), 2**bits - 1):
        assert magnitude.bit_length() == bits
        back = read_back([sign * magnitude])
        assert back == [sign * magnitude]
        assert type(back[0]) is int


@pytest.mark.parametrize("number", [0.1, 1.0, 1e16, 1e22, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_floats_are_read_back_with_sign_and_type(number: float, sign: int) -> None:
    back = read_back(sign * number)
    assert type(back) is float
    assert back.hex() == (sign * number).hex()


@pytest.mark.parametrize("value", [0, 0.0, False, 1, 1.0, True, None, "", "1", [], {}], ids=repr)
def test_values_that_compare_equal_keep_their_types(value: object) -> None:
    back = read_back(value)
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize("text", ["\0", "\x1f\x7f", '"\\/', "\u2028\u2029", "\ufeff", "\uffff", "😀", "é", "e\u0301"])
def test_text_is_read_back_as_value_and_as_key(text: str) -> None:
    assert read_back({text: [text]}) == {text: [text]}


def test_the_order_of_keys_is_kept() -> None:
    assert list(read_back({"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]


@pytest.mark.parametrize("nest", [lists, objects])
def test_the_greatest_allowed_depth_is_read_back(nest: Any) -> None:
    deepest = nest(MAXIMUM_JSON_DEPTH)
    assert same(read_back(deepest), deepest)


def test_a_wide_value_is_not_a_deep_one() -> None:
    broad: list[Any] = [[{"a": []}] for _ in range(2 * MAXIMUM_JSON_DEPTH)]
    assert read_back(broad) == broad


# Refused values


@pytest.mark.parametrize("value", INEXACT, ids=lambda value: f"{type(value).__name__} {ascii(value)[:30]}")
def test_a_value_that_is_not_exact_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|key|surrogate|bits"):
        exact_json(value)


@settings(deadline=None)
@given(inexact_values)
def test_a_value_that_is_not_exact_json_is_refused_at_any_depth(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|key|surrogate|bits"):
        exact_json(value)
    with pytest.raises(ValidationError):
        VALUE.validate_python(value)
    with pytest.raises(PydanticSerializationError):
        VALUE.dump_json(value)
    with pytest.raises(PydanticSerializationError):
        VALUE.dump_python(value)


@pytest.mark.parametrize("nest", [lists, objects])
@pytest.mark.parametrize("levels", [MAXIMUM_JSON_DEPTH + 1, 10_000])
def test_deeper_levels_are_refused(nest: Any, levels: int) -> None:
    with pytest.raises(ValueError, match="nested deeper"):
        exact_json(nest(levels))


def test_lists_and_objects_both_count_as_levels() -> None:
    half = MAXIMUM_JSON_DEPTH // 2
    value: Any = "leaf"
    for _ in range(half):
        value = {"a": [value]}
    assert same(read_back(value), value)
    with pytest.raises(ValueError, match="nested deeper"):
        exact_json([value])


def test_a_list_that_contains_itself_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append({"a": cycle})
    with pytest.raises(ValueError, match="nested deeper"):
        exact_json(cycle)
    with pytest.raises(ValidationError, match="nested deeper"):
        VALUE.validate_python(cycle)


def test_an_object_that_contains_itself_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["a"] = [cycle]
    with pytest.raises(ValueError, match="nested deeper"):
        exact_json(cycle)
    with pytest.raises(ValidationError, match="nested deeper"):
        OBJECT.validate_python(cycle)


@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udc00"', r'{"\ud800": 1}', r'["a\udfff"]'])
def test_json_with_an_escaped_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        VALUE.validate_json(text)


# Objects


@settings(deadline=None)
@given(json_objects)
def test_an_object_is_read_back_exactly(value: dict[str, Any]) -> None:
    assert same(OBJECT.validate_json(OBJECT.dump_json(OBJECT.validate_python(value))), value)


@pytest.mark.parametrize("value", [None, [], [["a", 1]], "{}", 1, True, OrderedDict(), ...], ids=ascii)
def test_a_value_that_is_not_an_object_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a JSON object"):
        exact_json_object(value)
    with pytest.raises(ValidationError):
        OBJECT.validate_python(value)
    with pytest.raises(PydanticSerializationError):
        OBJECT.dump_json(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["null", "[]", '"a"', "1", "true"])
def test_json_that_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        OBJECT.validate_json(text)


@settings(deadline=None)
@given(texts, inexact_values)
def test_an_object_with_a_value_that_is_not_exact_json_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        OBJECT.validate_python({key: value})
    with pytest.raises(PydanticSerializationError):
        OBJECT.dump_json({key: value})


# Times


@settings(deadline=None)
@given(moments)
def test_a_time_with_any_offset_is_converted_to_utc(moment: datetime) -> None:
    kept = MOMENT.validate_python(moment)
    assert kept == moment
    assert kept.tzinfo is UTC


@settings(deadline=None)
@given(moments)
def test_a_time_is_read_back_from_json_exactly(moment: datetime) -> None:
    kept = MOMENT.validate_python(moment)
    assert same(MOMENT.validate_json(MOMENT.dump_json(kept)), kept)


@pytest.mark.parametrize("microsecond", [1, 10, 100_000, 123_456, 999_999])
def test_microseconds_are_kept(microsecond: int) -> None:
    moment = datetime(2026, 5, 6, 7, 8, 9, microsecond, tzinfo=timezone(timedelta(hours=2)))
    kept = MOMENT.validate_python(moment)
    assert kept == datetime(2026, 5, 6, 5, 8, 9, microsecond, tzinfo=UTC)
    assert MOMENT.validate_json(MOMENT.dump_json(kept)).microsecond == microsecond


def test_text_with_an_offset_is_converted() -> None:
    expected = datetime(2025, 12, 31, 18, 30, 0, 123456, tzinfo=UTC)
    assert same(MOMENT.validate_json('"2026-01-01T00:00:00.123456+05:30"'), expected)


@pytest.mark.parametrize("moment", [FIRST, LAST])
def test_the_first_and_the_last_time_are_read_back(moment: datetime) -> None:
    assert same(MOMENT.validate_json(MOMENT.dump_json(MOMENT.validate_python(moment))), moment)


@pytest.mark.parametrize(
    ("moment", "hours"),
    [(LAST, 0), (LAST, 1), (FIRST, 0), (FIRST, -1)],
    ids=["last+0", "last+1", "first+0", "first-1"],
)
def test_a_time_that_utc_moves_into_the_calendar_is_accepted(moment: datetime, hours: int) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert MOMENT.validate_python(moment) == moment


@pytest.mark.parametrize(("moment", "hours"), [(LAST, -1), (FIRST, 1)], ids=["after the last", "before the first"])
def test_a_time_that_utc_moves_out_of_the_calendar_is_refused(moment: datetime, hours: int) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    with pytest.raises(ValidationError, match="out of range in UTC"):
        MOMENT.validate_python(moment)
    with pytest.raises(ValidationError, match="out of range in UTC"):
        MOMENT.validate_python(moment.isoformat())


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), "2026-01-01T00:00:00", "2026-01-01"])  # noqa: DTZ001
def test_a_naive_time_is_refused(moment: datetime | str) -> None:
    with pytest.raises(ValidationError, match="timezone"):
        MOMENT.validate_python(moment)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_only_utc_is_written(moment: datetime) -> None:
    with pytest.raises(PydanticSerializationError, match="not in UTC"):
        MOMENT.dump_json(moment)
