"""The log without projections, which would refuse many of the events that the tests of the log append."""

from collections.abc import Iterator

import pytest

from peon.persistence import Database
from peon.persistence.log import tag_index


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


@pytest.fixture
def memory(migrated_memory: None) -> Iterator[Database]:
    """For tests of what is decided before a database is asked."""
    with Database.open(url="sqlite://", maintain_projections=False) as database:
        yield database


@pytest.fixture(params=["from the log", "by the index"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ways in which a query finds its events."""
    if request.param == "by the index":
        monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
