"""Long lists of parameters, of which the suite tries the first ones and the slow proofs all others."""

from collections.abc import Iterable
from typing import Any

import pytest


def rest_is_slow(values: Iterable[Any], first: int) -> list[Any]:
    """Returns values for `pytest.mark.parametrize`, of which all after the `first` ones are slow proofs."""
    return [value if number < first else _slow(value) for number, value in enumerate(values)]


def _slow(value: Any) -> Any:
    if isinstance(value, type(pytest.param())):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.slow])
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
