"""The log without projections, which would refuse many of the events that the tests of the log append."""

from collections.abc import Iterator

import pytest

from peon.persistence import Database


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


@pytest.fixture
def memory() -> Iterator[Database]:
    """For tests of what is decided before a database is asked."""
    with Database.open(url="sqlite://", projections=False) as database:
        yield database
