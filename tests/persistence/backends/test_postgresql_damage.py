"""A damaged page on a server: the projections are rebuilt, and the other events are copied."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from helpers.private_postgresql_server import PrivateServer, binaries
from sqlalchemy import text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import Database, StoreUnavailable, copy_database, salvage_database

pytestmark = pytest.mark.slow

PAGE_BYTES = 8_192
LONG = "x" * 400
PROJECTS = 500


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    found = binaries()
    if found is None:
        pytest.skip("the binaries of PostgreSQL are not installed")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        server = PrivateServer(found, Path(name))
        yield server
        server.stop()


def fill(server: PrivateServer) -> None:
    with Database.open(url=server.url) as database:
        database.events.append_all(
            [ProjectCreated(project_id=UUID(int=number), name=LONG, path="/") for number in range(PROJECTS)]
        )


def damage_second_page(server: PrivateServer, table: str) -> None:
    with Database.open(url=server.url, maintain_projections=False) as database, database.engine.connect() as connection:
        connection.execute(text("CHECKPOINT"))
        path = Path(connection.execute(text("SHOW data_directory")).scalar_one())
        path /= connection.execute(text("SELECT pg_relation_filepath(:name)"), {"name": table}).scalar_one()
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)
    server.restart("fast")


def test_a_damaged_table_of_a_projection_is_rebuilt(server: PrivateServer) -> None:
    fill(server)
    damage_second_page(server, "projection_projects")

    with Database.open(url=server.url) as database:
        with pytest.raises(StoreUnavailable, match=r"rebuild\(\)"):
            database.read_model.projects()
        database.projections.rebuild()
        assert database.projections.verify() == []
        assert len(database.read_model.projects()) == PROJECTS


def test_events_outside_a_damaged_page_are_copied(server: PrivateServer, tmp_path: Path) -> None:
    fill(server)
    damage_second_page(server, "events")

    with (
        Database.open(url=server.url, maintain_projections=False) as source,
        Database.open(url=f"sqlite:///{tmp_path}/target.db", maintain_projections=False) as target,
    ):
        with pytest.raises(StoreUnavailable, match=r"salvage_database\(\)"):
            copy_database(source, target)
        report = salvage_database(source, target)
        first, last = report.lost_sequences[0], report.lost_sequences[-1]

        assert 0 < len(report.lost_sequences) < 30
        assert report.lost_sequences == tuple(range(first, last + 1))
        assert report.events == PROJECTS - len(report.lost_sequences)
        assert list(source.events.stream(limit=first - 1)) == target.events.replay_all()[: first - 1]
        assert source.events.replay_from(last + 1) == target.events.replay_from(last + 1)
        assert target.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="x")])[0].sequence == PROJECTS + 1
