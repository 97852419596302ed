"""A pre-forking server that opens the database in its master process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import PATIENCE
from sqlalchemy import URL

from peon.persistence import Database

STARTS = 20
WORKERS = 4


@pytest.mark.slow
@pytest.mark.alone
def test_every_worker_of_a_preloaded_application_starts(migrated_sqlite_url: URL, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    helpers = Path(__file__).parents[2] / "helpers"
    address = migrated_sqlite_url.render_as_string()
    environment = {**os.environ, "DATABASE_OF_TEST": address}
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", "unix:socket"]
    command += ["--chdir", str(tmp_path), "--pythonpath", str(helpers), "--config", "python:preloaded_application"]
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        for start in range(1, STARTS + 1):
            with (tmp_path / "log").open("w") as log:
                server = subprocess.Popen(
                    [*command, "preloaded_application:application"],
                    env=environment,
                    cwd=helpers,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                deadline = time.monotonic() + PATIENCE
                while database.events.last_sequence() < start * WORKERS:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.01)
            finally:
                os.killpg(server.pid, signal.SIGKILL)  # a worker that hangs would ignore a polite request
                server.wait(PATIENCE)
