"""An empty database with the projection of the domain for each test of projections."""

from collections.abc import Callable

import pytest

from peon.persistence import Database


@pytest.fixture
def database(open_empty: Callable[..., Database]) -> Database:
    return open_empty()
