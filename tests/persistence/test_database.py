"""`Database`: read transactions, and the argument that turns projections off."""

from uuid import UUID

import pytest
from sqlalchemy import URL, func, select

from peon import Database
from peon.orchestration import OrchestrationEvent, ProjectCreated
from peon.persistence.schema import events


def created(number: int) -> list[OrchestrationEvent]:
    return [ProjectCreated(project_id=UUID(int=number), name="tide-table", path="/home/ada/tide-table")]


COUNT = select(func.count()).select_from(events)


def test_a_read_transaction_sees_one_committed_state_and_blocks_no_writer(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(created(1))
        with database.read_transaction() as connection:
            before = connection.scalar(COUNT)
            database.events.append_all(created(2))  # does not wait for the reader

            assert (before, connection.scalar(COUNT)) == (1, 1)
        with database.read_transaction() as connection:
            assert connection.scalar(COUNT) == 2


def test_a_read_transaction_does_not_wait_for_a_writer(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as writer:
        database.events.append_all(created(1), connection=writer)
        with database.read_transaction() as connection:
            assert connection.scalar(COUNT) == 0


def test_projections_that_are_not_maintained_do_not_change(database: Database, url: URL) -> None:
    alone = Database(database.engine, maintain_projections=False)
    alone.events.append_all(created(1))

    assert database.read_model.projects() == []
    database.projections.catch_up()
    assert [project.id for project in database.read_model.projects()] == [UUID(int=1)]


@pytest.mark.parametrize("projections", [True, False, "WordCount"])
def test_projections_must_be_a_list(projections: object) -> None:
    with pytest.raises(TypeError, match="maintain_projections"):
        Database.open(url="sqlite://", projections=projections)  # type: ignore[arg-type]
