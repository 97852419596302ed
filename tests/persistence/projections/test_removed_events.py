"""Projections that hold events which were removed from the end of the log."""

from uuid import UUID

import pytest
from helpers.disabled_triggers import triggers_disabled
from sqlalchemy import URL, text

from peon.orchestration import ProjectCreated
from peon.persistence import Database, ProjectionsOutOfDate


def created(number: int) -> ProjectCreated:
    return ProjectCreated(project_id=UUID(int=number), name=str(number), path="/")


def remove_last(database: Database, count: int) -> None:
    """Removes events by hand, past the triggers, and has SQLite use their numbers again, as PostgreSQL does."""
    with database.engine.begin() as connection, triggers_disabled(connection):
        connection.execute(
            text("DELETE FROM events WHERE sequence > (SELECT max(sequence) - :count FROM events)"), {"count": count}
        )
        if database.engine.dialect.name == "sqlite":
            connection.execute(text("UPDATE sqlite_sequence SET seq = (SELECT max(sequence) FROM events)"))


@pytest.mark.parametrize("appended", [1, 2, 3])
def test_an_append_says_what_to_do_and_opening_does_it(migrated_lasting_url: URL, appended: int) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([created(number) for number in range(1, 6)])
        remove_last(database, 2)
        batch = [created(number) for number in range(11, 11 + appended)]
        with pytest.raises(ProjectionsOutOfDate, match="up to 5, but the log ended at 3: events were removed"):
            database.events.append_all(batch)
    with Database.open(url=migrated_lasting_url) as database:
        assert [project.name for project in database.read_model.projects()] == ["1", "2", "3"]
        assert [stored.sequence for stored in database.events.append_all(batch)] == [4, 5, 6][:appended]
        assert database.projections.verify() == []


def test_a_rebuild_helps_as_well(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([created(number) for number in range(1, 6)])
        remove_last(database, 2)
        database.projections.rebuild()
        database.events.append_all([created(6)])
        assert database.projections.verify() == []
