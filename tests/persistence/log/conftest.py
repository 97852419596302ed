"""Fixtures of the log without projections, because projections would refuse many events of these tests."""

from collections.abc import Iterator

import pytest

from peon.persistence import Database
from peon.persistence.log import tag_index


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


@pytest.fixture
def memory(migrated_memory: None) -> Iterator[Database]:
    """Returns a database in memory, for tests whose result does not depend on the database."""
    with Database.open(url="sqlite://", maintain_projections=False) as database:
        yield database


@pytest.fixture(params=["from the log", "by the index"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test for each way in which a query finds its events."""
    if request.param == "by the index":
        monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
