"""The point-in-time recovery of docs/how-to/back-up-continuously.md, with a private server."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from helpers.private_postgresql_server import PrivateServer, binaries
from helpers.processes import PATIENCE
from sqlalchemy import text

from peon.orchestration import ProjectCreated, ProjectDeleted, ProjectRenamed
from peon.persistence import Database

PROJECT = UUID(int=1)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        yield Path(name)


@pytest.mark.slow
@pytest.mark.alone
def test_the_state_of_a_moment_is_recovered(folder: Path) -> None:
    if (installed := binaries()) is None:
        pytest.skip("no PostgreSQL server is installed here")
    archive = folder / "archive"
    archive.mkdir()
    archive.chmod(0o777)  # the server may run as another user
    server = PrivateServer(installed, folder)
    try:
        server.configure("archive_mode = on", f"archive_command = 'test ! -f {archive}/%f && cp %p {archive}/%f'")
        server.restart("fast")
        with Database.open(url=server.url) as database:
            database.events.append_all([ProjectCreated(project_id=PROJECT, name="a", path="/a")])
            base = server.base_backup("base")
            database.events.append_all([ProjectRenamed(project_id=PROJECT, name="good")] * 500)
            with database.engine.connect() as connection:
                moment = connection.scalar(text("SELECT clock_timestamp()"))
                connection.execute(text("SELECT pg_sleep(0.01)"))
            database.events.append_all([ProjectDeleted(project_id=PROJECT)])
            log_id = database.events.log_id()
            with database.engine.connect() as connection:
                segment = connection.scalar(text("SELECT pg_walfile_name(pg_switch_wal())"))
            wait_for(archive / str(segment))
        server.stop()
        server.use(base)
        server.configure(
            f"restore_command = 'cp {archive}/%f %p'",
            f"recovery_target_time = '{moment}'",
            "recovery_target_action = 'promote'",
        )
        (base / "recovery.signal").touch()
        server.start()
        deadline = time.monotonic() + PATIENCE
        while (base / "recovery.signal").exists():  # it is removed when the server accepts writes
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with Database.open(url=server.url, migrate=False) as recovered:
            assert recovered.events.last_sequence() == 501
            assert recovered.projections.verify() == []
            assert recovered.read_model.projects()[0].name == "good"
            assert recovered.events.log_id() == log_id != recovered.events.renew_log_id()
            assert recovered.events.append_all([ProjectDeleted(project_id=PROJECT)])[0].sequence == 502
    finally:
        server.stop()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
