"""Field types whose values come back from JSON exactly as they were, or are refused.

Each checks twice: when a model is built, and again when it is written, because a frozen model does not
protect what a list or a dictionary inside it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, GetCoreSchemaHandler, PlainSerializer
from pydantic.functional_validators import AfterValidator
from pydantic_core import CoreSchema, core_schema

MAXIMUM_JSON_DEPTH = 128
"""Levels of lists and objects that one JSON value may nest.

jiter, the JSON parser of pydantic, gives up at 200 levels, and the models around the value need some.
"""

MAXIMUM_INTEGER_BITS = 14_000
"""Python and jiter parse integers of up to 4,300 decimal digits, which is 14,284 bits."""


class RuleError(ValueError):
    """A value breaks a rule of the domain. The message does not repeat the value, so it may be shown and logged."""


def exact_json(value: object, levels: int = MAXIMUM_JSON_DEPTH) -> Any:
    """Returns a copy of `value`, in which nothing is shared that could be changed later.

    Raises:
        RuleError: It holds something that would come back from JSON as something else, or not at all:
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
    """The same as `exact_json`, for a value that must be an object, which is a `dict` in Python."""
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
    """What the JSON parser made needs no check on the way in; what Python code hands over does."""

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
"""Any JSON value, see `exact_json`. Typed as `Any`: a recursive type would refuse a caller's `dict[str, str]`."""

JsonObject = Annotated[dict[str, Any], _Exact(exact_json_object)]
"""A JSON object, see `exact_json`."""


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
"""An aware moment of any offset, kept in UTC with microseconds. A naive one is refused."""


def event_type_name(event: BaseModel | type[BaseModel]) -> str:
    """Returns the name that the `event_type` column and the payload's `type` give to an event or its class.

    Raises:
        TypeError: It is not an event: no pydantic model, or one whose `type` is not fixed to one text by
            `type: Literal["…"] = "…"`.
    """
    model = event if isinstance(event, type) else type(event)
    field = getattr(model, "model_fields", {}).get("type")
    tags = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    if len(tags) != 1 or not isinstance(tags[0], str):
        raise TypeError(f'{model.__name__} is not an event: an event has a field  type: Literal["…"] = "…"')
    return tags[0]
