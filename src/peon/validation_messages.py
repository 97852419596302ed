"""Describes errors of pydantic without quoting the input, which is a payload."""

from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema

from peon.payloads import RuleError

DISCREET_ERRORS = frozenset(get_args(core_schema.ErrorType)) - {"union_tag_invalid", "value_error", "assertion_error"}
"""The errors of pydantic whose message does not quote the input."""


def collect_names(annotation: Any, names: set[object]) -> None:
    """Adds the names of all fields and tags in the models of an annotation, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in names:
            return
        names.add(annotation)
        names.update(annotation.model_fields)
        for field in annotation.model_fields.values():
            collect_names(field.annotation, names)
    elif get_origin(annotation) is Literal:
        names.update(get_args(annotation))
    else:
        for part in get_args(annotation):
            collect_names(part, names)


def describe(error: ValidationError, names: Collection[object], whole: str = "payload") -> str:
    """Returns a description that contains no part of the input.

    Args:
        names: The names of fields that may be shown as places; others are hidden.
        whole: Stands for the input as a whole.
    """
    shown = []
    for detail in error.errors(include_url=False, include_input=False)[:3]:
        place = describe_place(detail["loc"], names) or whole
        message = detail["msg"]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, RuleError):
            message = str(cause)
        elif detail["type"] not in DISCREET_ERRORS:
            message = detail["type"].replace("_", " ")
        shown.append(f"{place}: {message}")
    if error.error_count() > len(shown):
        shown.append(f"and {error.error_count() - len(shown)} more")
    return "; ".join(shown)


def describe_place(place: Iterable[object], names: Collection[object]) -> str:
    """Returns the dotted path of a place in a payload; keys that are not among `names` are hidden."""
    return ".".join(str(part) if isinstance(part, int) or part in names else "(unknown)" for part in place)
