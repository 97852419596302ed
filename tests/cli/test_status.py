"""`peon status`."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.peon_command import Peon
from sqlalchemy import URL, Engine, event, insert, text

from peon import Database
from peon.cli.status_document import Status
from peon.orchestration import ProjectCreated
from peon.persistence import schema
from peon.persistence.migrations import revisions


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([ProjectCreated(project_id=uuid4(), name="a", path="/a") for _ in range(10)])
        with database.events.durable_subscription("mails") as subscription:
            next(subscription)
            subscription.save_position()
    return "--url", address(migrated_lasting_url)


def status(peon: Peon, *arguments: str) -> Status:
    return Status.model_validate(peon("status", "--json", *arguments).document)


def test_the_document_has_every_part_of_the_state(peon: Peon, at: tuple[str, str]) -> None:
    found = status(peon, *at)
    assert (found.revision, found.newest_revision) == (revisions()[-1], revisions()[-1])
    assert (found.log.events, found.log.first_sequence, found.log.last_sequence) == (10, 1, 10)
    assert (found.log.events_last_day, found.log.events_a_day) == (10, None)
    assert [(each.name, each.position, each.lag, each.problems) for each in found.projections] == [
        ("orchestration", 10, 0, 0)
    ]
    assert [(each.name, each.position, each.lag) for each in found.subscriptions] == [("mails", 1, 9)]
    assert (found.running_turns, found.pending_approvals, found.checks) == (0, 0, None)
    storage = found.storage
    assert storage.log
    assert storage.projections
    assert storage.indexes
    assert storage.other_tables
    measured = storage.log + storage.projections + storage.indexes + storage.other_tables
    pointers = storage.database - (storage.free or 0) - measured  # pages of a file that can shrink in steps
    assert 0 <= pointers <= (4096 if storage.write_ahead_log is not None else 0)


def test_people_are_shown_the_same(peon: Peon, at: tuple[str, str]) -> None:
    shown = peon("status", *at).out
    for part in ("10, 10 in the last 24 hours", "orchestration", "mails", "pending approvals", "the newest"):
        assert part in shown


def test_an_empty_log_has_no_first_event(peon: Peon, migrated_lasting_url: URL) -> None:
    found = status(peon, "--url", address(migrated_lasting_url))
    assert (found.log.events, found.log.first_sequence, found.log.last_sequence) == (0, None, 0)
    assert peon("status", "--url", address(migrated_lasting_url)).code == 0


def test_the_average_is_over_days(peon: Peon, migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        for day in range(1, 12):
            row = {"event_type": "A", "payload": "{}", "stored_at": f"2026-01-{day:02}T00:00:00.000000Z"}
            connection.execute(insert(schema.events).values(row))
    log = status(peon, "--url", address(migrated_sqlite_url)).log
    assert (log.events_a_day, log.events_last_day) == (1.1, 0)


def test_a_check_within_its_limits_is_fine(peon: Peon, at: tuple[str, str]) -> None:
    done = peon("status", "--check", *at)
    assert done.code == 0
    assert "FAILED" not in done.out
    found = status(peon, "--check", *at)
    assert found.checks
    assert all(each.ok for each in found.checks)
    assert (found.storage.log, found.users, found.running_turns) == (None, None, None)


def test_each_limit_is_checked(peon: Peon, at: tuple[str, str]) -> None:
    def failed(*options: str) -> list[str]:
        found = status(peon, "--check", *options, *at)
        return [each.name for each in found.checks or [] if not each.ok]

    assert failed("--max-lag", "9") == []
    assert failed("--max-lag", "8") == ["subscription mails"]
    with Database.open(url=at[1]) as database, database.engine.begin() as connection:
        connection.execute(text("INSERT INTO projection_problems VALUES ('orchestration', 3, 'A', 'wrong')"))
        connection.execute(text("UPDATE projection_positions SET sequence = 1"))
    assert failed() == ["problems of orchestration"]
    assert failed("--max-problems", "1") == []
    assert failed("--max-problems", "1", "--max-lag", "8") == ["projection orchestration", "subscription mails"]
    assert peon("status", "--check", *at).code == 1


def test_a_large_write_ahead_log_is_noticed(peon: Peon, migrated_sqlite_url: URL) -> None:
    at = ("--url", address(migrated_sqlite_url))
    with Database.open(url=migrated_sqlite_url) as database:
        database.settings.set("a", "x" * 100_000)
        assert peon("status", "--check", *at).code == 0
        assert peon("status", "--check", "--max-wal", "0", *at).code == 1


@pytest.mark.parametrize("revision", revisions())
def test_every_revision_is_shown_and_an_old_one_fails_the_check(peon: Peon, sqlite_url: URL, revision: str) -> None:
    path = thaw(revision, file_of(sqlite_url))
    before = path.read_bytes()
    found = status(peon, "--url", address(sqlite_url))
    assert found.revision == revision
    assert found.log.events > 0
    done = peon("status", "--check", "--url", address(sqlite_url), "--max-problems", "999")
    assert ("revision" in [line.split()[1] for line in done.out.splitlines() if "FAILED" in line]) is (
        revision != revisions()[-1]
    )
    assert path.read_bytes() == before


def test_a_file_that_is_not_a_database_is_not_available(peon: Peon, sqlite_url: URL) -> None:
    path = file_of(sqlite_url)
    path.parent.mkdir()
    path.write_bytes(b"something else" * 100)
    done = peon("status", "--check", "--url", address(sqlite_url))
    assert done.code == 3
    assert "not an SQLite database" in done.err
    path.write_bytes(b"")
    assert peon("status", "--check", "--url", address(sqlite_url)).code == 3
    assert path.read_bytes() == b""


def test_the_processes_that_use_a_file_are_named(peon: Peon, at: tuple[str, str]) -> None:
    with Database.open(url=at[1]) as database:
        database.events.last_sequence()
        users = status(peon, *at).users
    if at[1].startswith("postgresql"):
        assert users
    elif sys.platform == "linux":
        assert users == []  # this process itself is not counted


def test_a_check_does_the_same_work_for_any_log(peon: Peon, migrated_sqlite_url: URL) -> None:
    at = ("status", "--check", "--url", address(migrated_sqlite_url))
    with steps_counted() as few:
        peon(*at)
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO events (event_type, payload, stored_at) "
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
                "SELECT 'A', '{}', '2026-01-01T00:00:00.000000Z' FROM n"
            )
        )
    with steps_counted() as many:
        done = peon(*at)
    assert done.code == 1  # the projection is behind
    assert sum(many) < sum(few) + 2_000


@contextmanager
def steps_counted() -> Iterator[list[int]]:
    """Counts the steps of SQLite's machine, in tens."""
    steps: list[int] = []

    def count(connection: sqlite3.Connection, _: object) -> None:
        connection.set_progress_handler(lambda: steps.append(10), 10)

    event.listen(Engine, "connect", count)
    yield steps
    event.remove(Engine, "connect", count)
