"""Finds the text in an event that UTF-8 cannot encode."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

Place = tuple[object, ...]
"""Names of fields, keys and indexes that lead to a value."""


def place_of_lone_surrogate(event: BaseModel) -> Place | None:
    """Returns where an event has text with a lone surrogate, `None` if it has none."""
    return next(_places(event, (), set()), None)


def _places(value: object, place: Place, seen: set[int]) -> Iterator[Place]:
    if isinstance(value, str):
        if not _is_encodable(value):
            yield place
    elif id(value) not in seen:  # a tampered event may contain itself
        seen.add(id(value))
        for name, part in _parts(value):
            yield from _places(name, (*place, name), seen)
            yield from _places(part, (*place, name), seen)


def _parts(value: Any) -> Iterable[tuple[object, object]]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.items(), *(value.__pydantic_extra__ or {}).items()]
    if isinstance(value, dict):
        return [(key if isinstance(key, str) else None, item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return ()


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
