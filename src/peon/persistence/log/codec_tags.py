"""Which fields of events are tags, and which queries an event can match."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel

from peon.persistence.log.query import TYPE, EventQuery


class CodecTags:
    """The tags of the events of a codec.

    Args:
        names: See `EventCodec`.
        models: The members of the union by their types.
        converted: The types that upcasters convert. Their payloads may have any field.

    Attributes:
        names: The names of the tags.
        lists: Those of which an event can have several values.
    """

    def __init__(self, names: Iterable[str], models: Mapping[str, type[BaseModel]], converted: Collection[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"tags takes a list of names: [{names!r}]")
        self.names = frozenset(names)
        # For each type, how many values of each tag an event can have.
        self._values = {event_type: _values(self.names, model) for event_type, model in models.items()}
        having = {name for values in self._values.values() for name in values}
        if missing := self.names - having:
            raise ValueError(f"tag {min(missing)!r} is a field of no member of the union")
        self.lists = frozenset(name for values in self._values.values() for name in values if values[name] == inf)
        anything = {name: inf if name in self.lists else 1 for name in self.names}
        for event_type in {*converted, *(name for name, model in models.items() if _keeps_other_fields(model))}:
            self._values[event_type] = anything

    def require_types(self, event_types: Iterable[str] | None) -> None:
        """Raises `ValueError` if one of the types is not known."""
        unknown = min(frozenset(event_types or ()) - self._values.keys(), default=None)
        if unknown is not None:
            nearest = get_close_matches(unknown[:200], self._values, n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else "see event_type_name."
            raise ValueError(f"{unknown[:200]!r} is no event type of the codec, so no event can match: {advice}")

    def require_possible(self, query: EventQuery, *, undecodable: bool = False) -> None:
        """Raises `ValueError` if no event can match one of the items of the query.

        Args:
            undecodable: The reader is given undecodable events as well, which may be of any type and have any tags.
        """
        for item in query.items():
            asked = Counter(clause.tag for clause in item.clauses() if clause.tag != TYPE)
            if unknown := asked.keys() - self.names:
                known = ", ".join(sorted(self.names)) or "none"
                raise ValueError(f"{min(unknown)} is not a tag of these events; the codec names {known}")
            if not undecodable:
                self.require_types(item.event_types)
                self._require_event(item.event_types, asked)

    def _require_event(self, event_types: Iterable[str] | None, asked: Mapping[str, int]) -> None:
        types = list(self._values if event_types is None else event_types)
        if any(all(self._values[name].get(tag, 0) >= number for tag, number in asked.items()) for name in types):
            return
        described = (tag if number == 1 else f"{number} values of {tag}" for tag, number in sorted(asked.items()))
        of_types = "" if event_types is None else f" of type {' or '.join(types[:5])}"
        raise ValueError(
            f"no event{of_types} has {' and '.join(described)}, so none can match: "
            "to match events that have one or the other, pass several queries to EventQuery.any_of"
        )


def _values(names: Iterable[str], model: type[BaseModel]) -> dict[str, float]:
    """Returns for each tag that the model has as a field how many values its events can have."""
    values: dict[str, float] = {}
    for name in names:
        field = model.model_fields.get(name)
        if name == TYPE or field is None:
            continue
        number = _number_of_values(field.annotation)
        if number is None:
            raise ValueError(
                f"tag {name!r} is a field of neither text nor integers nor UUIDs alone in {model.__name__}, "
                "nor of a list of them"
            )
        if model.model_config.get("serialize_by_alias") and field.serialization_alias not in (None, name):
            raise ValueError(
                f"tag {name!r} is stored as {field.serialization_alias!r} by {model.__name__}: a tag has no alias"
            )
        values[name] = number
    return values


def _keeps_other_fields(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra") == "allow"


def _number_of_values(annotation: Any) -> float | None:
    """Returns how many values a field of the annotation can have in JSON, each text or an integer.

    It is `None` if a value can be something else. A value of null counts as any other.
    """
    annotation = _plain(annotation)
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        numbers = [_number_of_values(argument) for argument in arguments]
        return None if None in numbers else max(number for number in numbers if number is not None)
    if origin in (list, tuple, set, frozenset):
        items = [argument for argument in arguments if argument is not ...]
        return inf if items and all(_number_of_values(item) == 1 for item in items) else None
    if origin is Literal:
        return 1 if all(type(value) is not bool and _is_scalar(type(value)) for value in arguments) else None
    return 1 if _is_scalar(annotation) else None


def _plain(annotation: Any) -> Any:
    """Returns an annotation without what is around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # type X = …
            annotation = annotation.__value__
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        else:
            return annotation


def _is_scalar(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return all(_is_scalar(type(member.value)) for member in annotation)
    return annotation in (str, int, UUID, None, NoneType)
