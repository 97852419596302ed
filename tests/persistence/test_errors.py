"""Errors and append conditions can be copied and pickled, so that processes can exchange them."""

import copy
import pickle
from collections.abc import Callable
from inspect import signature
from typing import Any
from uuid import UUID

import pytest

from peon.config import ConfigError
from peon.persistence import AppendCondition, EventQuery, errors

ERRORS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PersistenceError)
]

ways = pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, *(lambda value, p=p: pickle.loads(pickle.dumps(value, p)) for p in range(6))],  # noqa: S301
)


def an_error(kind: type[Exception]) -> Exception:
    """Returns an error whose attributes all have different values."""
    if kind.__init__ in (errors.PersistenceError.__init__, ConfigError.__init__):
        return kind("a message")
    parameters = list(signature(kind).parameters.values())
    positional = [f"{p.name} of it" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return kind(*positional, **{p.name: f"{p.name} of it" for p in parameters if p.kind is p.KEYWORD_ONLY})


@ways
@pytest.mark.parametrize("kind", [*ERRORS, ConfigError])
def test_an_error_keeps_its_attributes_and_notes(
    kind: type[Exception], again: Callable[[Exception], Exception]
) -> None:
    error = an_error(kind)
    error.add_note("a note")

    copied = again(error)

    assert type(copied) is kind
    assert str(copied) == str(error)
    assert copied.args == error.args
    assert vars(copied) == vars(error)


def test_the_generated_errors_have_attributes() -> None:
    assert len(ERRORS) > 10
    assert vars(an_error(errors.ConcurrencyError)) == {"sequence": "sequence of it", "after": "after of it"}


@ways
def test_a_condition_can_be_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    query = EventQuery(event_types=["A"], thread_id=UUID(int=1), tags={"branch": "main", "number": 7})
    condition = AppendCondition(query, after=3)

    copied = again(condition)

    assert copied == condition
    assert hash(copied) == hash(condition)
    assert copied.query.wanted() == query.wanted()
    with pytest.raises(TypeError):
        copied.query.tags["branch"] = "other"
