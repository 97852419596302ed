"""Field types whose values JSON reproduces exactly or which are refused, and the names of event types.

Each field type checks twice: when a model is built, and again when it is written, because a frozen model does not
protect the lists and dictionaries inside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, GetCoreSchemaHandler, PlainSerializer
from pydantic.functional_validators import AfterValidator
from pydantic_core import CoreSchema, core_schema

from peon.storable_text import storable_text

MAXIMUM_JSON_DEPTH = 128
"""How deeply lists and objects may be nested in one JSON value.

jiter, the JSON parser of pydantic, gives up at 200 levels, some of which the models around the value need.
"""

MAXIMUM_INTEGER_BITS = 14_000
"""Just below the limit of Python and jiter, which parse integers of up to 4,300 decimal digits (14,284 bits)."""


class RuleError(ValueError):
    """A value breaks a rule. The message does not contain the value, so it may be shown and logged."""


def exact_json(value: object, levels: int = MAXIMUM_JSON_DEPTH) -> Any:
    """Returns a copy of `value` that shares no list or dictionary with it.

    Raises:
        RuleError: It contains something that JSON would read back differently, or not at all:
            a value that is not exactly `str`, `int`, `float`, `bool`, `None`, `list` or `dict`, a NaN or an
            infinity, a key that is not text, text that UTF-8 cannot encode, an integer of more than
            `MAXIMUM_INTEGER_BITS`, or more than `levels` levels of lists and objects.
    """
    kind = type(value)
    if kind is str:
        return _encodable(value)  # type: ignore[arg-type]
    if value is None or kind is bool:
        return value
    if kind is int:
        if value.bit_length() > MAXIMUM_INTEGER_BITS:  # type: ignore[attr-defined]
            raise RuleError(f"an integer of more than {MAXIMUM_INTEGER_BITS} bits")
        return value
    if kind is float:
        if not isfinite(value):  # type: ignore[arg-type]
            raise RuleError("NaN and infinity are not JSON")
        return value
    if kind is not dict and kind is not list:
        raise RuleError(f"a {kind.__name__} is not a JSON value")
    if levels == 0:
        raise RuleError(f"nested deeper than {MAXIMUM_JSON_DEPTH} levels")
    if kind is list:
        return [exact_json(item, levels - 1) for item in value]  # type: ignore[attr-defined]
    return {_key(key): exact_json(item, levels - 1) for key, item in value.items()}  # type: ignore[attr-defined]


def exact_json_object(value: object) -> Any:
    """Like `exact_json`, for a value that must be a JSON object, which is a `dict` in Python."""
    if type(value) is not dict:
        raise RuleError(f"a {type(value).__name__} is not a JSON object")
    return exact_json(value)


def _key(key: object) -> str:
    if type(key) is not str:
        raise RuleError(f"a key of a JSON object is text, not {type(key).__name__}")
    return _encodable(key)


def _encodable(text: str) -> str:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise RuleError("text with a lone surrogate cannot be encoded as UTF-8") from None
    return text


@dataclass(frozen=True)
class _Exact:
    """Checks values from Python code when a model is built, and all values when it is written."""

    check: Callable[[object], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shape = handler(source)
        return core_schema.json_or_python_schema(
            json_schema=shape,
            python_schema=core_schema.no_info_before_validator_function(self.check, shape),
            serialization=core_schema.plain_serializer_function_ser_schema(
                self.check, return_schema=core_schema.any_schema()
            ),
        )


JsonValue = Annotated[Any, _Exact(exact_json)]
"""Any JSON value. See `exact_json`. Typed as `Any`: a recursive type would refuse a caller's `dict[str, str]`."""

JsonObject = Annotated[dict[str, Any], _Exact(exact_json_object)]
"""A JSON object. See `exact_json`."""


@dataclass(frozen=True)
class MadeEncodable:
    """Makes text from Python code encodable when a model is built. See `storable_text`.

    For texts that must always be storable, such as the text of an exception with a file name that is not UTF-8.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shape = handler(source)
        return core_schema.json_or_python_schema(
            json_schema=shape,  # never has such text, so that decoding calls no Python code
            python_schema=core_schema.no_info_after_validator_function(_encodable_or_none, shape),
        )


def _encodable_or_none(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise RuleError("out of range in UTC") from None


def _require_utc(moment: datetime) -> datetime:
    if moment.tzinfo is not UTC:
        raise RuleError("not in UTC")
    return moment


UtcDatetime = Annotated[
    AwareDatetime,
    AfterValidator(_to_utc),
    PlainSerializer(_require_utc, return_type=datetime, when_used="json"),
]
"""An aware time with any offset, kept in UTC with microseconds. A naive time is refused."""


def event_type_name(event: BaseModel | type[BaseModel]) -> str:
    """Returns the name of an event or its class in the `event_type` column and in the payload's `type`.

    Raises:
        TypeError: It is not an event: not a pydantic model, or one whose `type` is not fixed to one text by
            `type: Literal["…"] = "…"`.
    """
    model = event if isinstance(event, type) else type(event)
    field = getattr(model, "model_fields", {}).get("type")
    tags = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    if len(tags) != 1 or not isinstance(tags[0], str):
        raise TypeError(f'{model.__name__} is not an event: an event has a field  type: Literal["…"] = "…"')
    return tags[0]
