"""A child that uses the file of an SQLite database that its parent had open when it forked."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Event

import pytest
from helpers.fork_processes import CHILD_SECONDS, exit_code_of_child, renamed
from helpers.processes import PATIENCE
from sqlalchemy import URL

from peon.persistence import Database

APPEND_AND_CLOSE = """
import sys, uuid
from peon.orchestration import ProjectRenamed
from peon.persistence import Database
with Database.open(url=sys.argv[1], maintain_projections=False) as database:
    database.events.append_all([ProjectRenamed(project_id=uuid.UUID(int=1), name="other")])
"""


@pytest.fixture
def database(migrated_sqlite_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        database.events.append_all([renamed("parent")])
        yield database


def append_and_close(url: URL) -> None:
    """Appends in a process that closes the database, as the last one if it knows nothing of any other."""
    subprocess.run([sys.executable, "-c", APPEND_AND_CLOSE, str(url)], check=True, timeout=PATIENCE)


def test_a_child_appends_after_its_parent_has_closed_the_database(database: Database) -> None:
    appended, parent_closed = Event(), Event()

    def append_before_and_after() -> None:
        database.events.append_all([renamed("child")])
        appended.set()
        assert parent_closed.wait(CHILD_SECONDS)
        database.events.append_all([renamed("child")])

    with ThreadPoolExecutor(1) as thread:
        code = thread.submit(exit_code_of_child, append_before_and_after)
        assert appended.wait(PATIENCE)
        database.close()
        parent_closed.set()
        assert code.result() == 0
    assert database.events.last_sequence() == 3


def test_a_child_outlives_a_parent_that_ends_at_once(database: Database) -> None:
    url = database.engine.url
    database.close()
    reading, writing = os.pipe()

    def fork_and_end() -> None:
        with Database.open(url=url, maintain_projections=False) as of_daemon:
            of_daemon.events.append_all([renamed("parent")])
            if os.fork() == 0:
                try:
                    os.close(reading_of_parent)
                    for _ in range(2):
                        append_and_close(url)
                        of_daemon.events.append_all([renamed("child")])
                    os.write(writing, b"done")
                finally:
                    os._exit(0)

    reading_of_parent = os.dup(reading)
    assert exit_code_of_child(fork_and_end) == 0
    os.close(writing)
    assert os.read(reading, 4) == b"done"
    os.close(reading)
    os.close(reading_of_parent)
    assert database.events.last_sequence() == 6
