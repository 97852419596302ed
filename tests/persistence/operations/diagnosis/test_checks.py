"""The checks of what surrounds a database: the machine, SQLite itself, and the settings of a server."""

import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.checks_page import rows
from helpers.migrated_databases import file_of
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, delete, insert

from peon import Database
from peon.persistence.backends.sqlite_side_tables import SQLiteSideTables
from peon.persistence.operations.diagnosis import Finding, Outcome, diagnose, files, postgresql
from peon.persistence.operations.reading import opened_for_reading
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.schema import removed_events

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "checks.md"


def found_by(check: str, url: URL) -> Finding:
    with opened_for_reading(url=url) as database:
        (found,) = [each.finding for each in diagnose(database) if each.check == check]
        return found


@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        ((3, 40, 1), Outcome.WARNING),
        ((3, 44, 5), Outcome.WARNING),
        ((3, 44, 6), Outcome.OK),
        ((3, 45, 0), Outcome.WARNING),
        ((3, 50, 7), Outcome.OK),
        ((3, 51, 2), Outcome.WARNING),
        ((3, 51, 3), Outcome.OK),
        ((3, 53, 0), Outcome.OK),
    ],
)
def test_versions_of_sqlite_with_the_defect(
    migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], outcome: Outcome
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    assert found_by("SQLite version", migrated_sqlite_url).outcome is outcome


@pytest.mark.parametrize(
    ("told", "outcome"),
    [("ext4 at /", Outcome.OK), ("nfs4 at /home", Outcome.FAILURE), ("fuse.sshfs at /mnt", Outcome.FAILURE)],
)
def test_a_network_file_system(
    migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch, told: str, outcome: Outcome
) -> None:
    monkeypatch.setattr(files, "file_system_of", lambda _: told)
    found = found_by("file system", migrated_sqlite_url)
    assert found.outcome is outcome
    assert told in found.reason


@pytest.mark.parametrize(("free", "outcome"), [(10**6, Outcome.FAILURE), (10**8, Outcome.WARNING), (10**9, Outcome.OK)])
def test_a_full_disk(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch, free: int, outcome: Outcome) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert found_by("free space", migrated_sqlite_url).outcome is outcome


def test_a_large_write_ahead_log(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.settings.set("a", "x" * 100_000)
        assert found_by("-wal file", migrated_sqlite_url).outcome is Outcome.OK
        monkeypatch.setattr(files, "WAL_SIZE_LIMIT_BYTES", 50_000)
        found = found_by("-wal file", migrated_sqlite_url)
    assert found.outcome is Outcome.WARNING
    assert "wal_checkpoint(TRUNCATE)" in found.advice


def test_a_file_that_this_user_can_only_read(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(migrated_sqlite_url)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != file or mode != os.W_OK)
        found = found_by("permissions", migrated_sqlite_url)
    assert found == Finding(Outcome.WARNING, f"this user can only read {file}", found.advice)


def test_a_busy_database_can_be_examined(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as connection:
        database.settings.set("a", 1, connection=connection)
        with opened_for_reading(url=migrated_lasting_url) as reading:
            failed = [each for each in diagnose(reading) if each.finding.outcome is Outcome.FAILURE]
    assert failed == []


@pytest.mark.parametrize(
    ("setting", "check", "outcome"),
    rest_is_slow(
        [
            ("synchronous_commit=off", "durability", Outcome.FAILURE),
            ("statement_timeout=60000", "timeouts", Outcome.WARNING),
            ("synchronous_commit=local", "durability", Outcome.OK),
            ("zero_damaged_pages=on", "durability", Outcome.FAILURE),
            ("idle_in_transaction_session_timeout=5000", "timeouts", Outcome.WARNING),
            ("idle_in_transaction_session_timeout=120000", "timeouts", Outcome.OK),
        ],
        first=2,
    ),
)
def test_settings_of_a_server(migrated_postgresql_url: URL, setting: str, check: str, outcome: Outcome) -> None:
    options = f"{migrated_postgresql_url.query['options']} -c{setting}"
    found = found_by(check, migrated_postgresql_url.update_query_dict({"options": options}))
    assert found.outcome is outcome
    assert (setting.partition("=")[0] in found.reason) is (outcome is not Outcome.OK)


@pytest.mark.parametrize(
    ("told", "used", "outcome"),
    [(1, {1}, Outcome.OK), (1, {2}, Outcome.WARNING), (1, {2, 3}, Outcome.FAILURE)],
)
def test_a_pooler(
    migrated_postgresql_url: URL, monkeypatch: pytest.MonkeyPatch, told: int, used: set[int], outcome: Outcome
) -> None:
    monkeypatch.setattr(postgresql, "sessions", lambda _: (told, used))
    assert found_by("pooler", migrated_postgresql_url).outcome is outcome


def record_gaps(url: URL, *gaps: tuple[int, int]) -> None:
    with Database.open(url=url) as database, database.engine.begin() as connection:
        connection.execute(delete(removed_events))
        for first, last in gaps:
            values = {"first_sequence": first, "last_sequence": last, "reason": "compaction", "removed_at": "now"}
            connection.execute(insert(removed_events).values(values))


def test_a_recorded_gap_is_explained(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        for sequence in (3, 5, 8):
            connection.exec_driver_sql(f"INSERT INTO events VALUES ({sequence}, 'A', '{{}}', 'now')")
    assert found_by("sequences", migrated_sqlite_url).reason == "5 events are missing: 1 to 2, 4, 6 to 7"
    record_gaps(migrated_sqlite_url, (1, 2), (6, 6), (7, 7))
    assert found_by("sequences", migrated_sqlite_url).reason == "1 event is missing: 4"
    record_gaps(migrated_sqlite_url, (1, 4), (6, 7))
    assert found_by("sequences", migrated_sqlite_url).outcome is Outcome.OK


def test_the_tables_of_a_killed_rebuild_are_mentioned_but_are_no_problem(migrated_sqlite_url: URL) -> None:
    assert found_by("tables of a rebuild", migrated_sqlite_url) == Finding(Outcome.OK, "none")
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        SQLiteSideTables(OrchestrationProjection.tables).create(connection)

    with opened_for_reading(url=migrated_sqlite_url) as database:
        found = {each.check: each.finding for each in diagnose(database)}
    told = found["tables of a rebuild"]
    assert (told.outcome, "named peon_rebuild_" in told.reason) == (Outcome.OK, True)
    assert [name for name, finding in found.items() if finding.outcome is Outcome.FAILURE] == []

    with Database.open(url=migrated_sqlite_url) as database:
        database.projections.rebuild()
    assert found_by("tables of a rebuild", migrated_sqlite_url) == Finding(Outcome.OK, "none")


def test_the_page_of_checks_has_each_of_them() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line in set(rows())] == [*rows()]
