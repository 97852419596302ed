"""Compares values by the instants in them, not by what Python makes of their time zones."""

from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel


def equal_as_instants(one: object, other: object) -> bool:
    """Returns whether two values are equal if each aware time in them is taken as an instant.

    To Python, a time in an hour that a time zone repeats or skips is equal to no time of another `tzinfo`. What is
    read back has the offset of its time, so it would be equal to nothing in two hours of a year (PEP 495).
    """
    return bool(one == other) or _in_utc(one) == _in_utc(other)


def _in_utc(value: Any) -> Any:
    """Returns what is equal for equal values, with all times in UTC; it is usually hashable if the value is."""
    if isinstance(value, datetime):
        return _moment_in_utc(value)
    if isinstance(value, BaseModel):
        # What pydantic compares, unless the class compares in a way of its own.
        if type(value).__eq__ is not BaseModel.__eq__:
            return value
        parts = value.__dict__, value.__pydantic_extra__, value.__pydantic_private__
        return type(value), *(part and _pairs_in_utc(part) for part in parts)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_in_utc(getattr(value, field.name)) for field in fields(value) if field.compare)
    if isinstance(value, dict):
        return {_in_utc(key): _in_utc(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_in_utc, value)]
    if isinstance(value, tuple):
        return tuple(map(_in_utc, value))
    if isinstance(value, set | frozenset):
        try:
            return frozenset(map(_in_utc, value))
        except TypeError:  # the class of an element has a hash of its own, and fields that have none
            return value
    return value


def _pairs_in_utc(named: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _in_utc(named[name])) for name in sorted(named))


def _moment_in_utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # in the first or last hours of the calendar
        return moment
