"""`peon backup` and `peon restore`."""

import shutil
import stat
from pathlib import Path
from uuid import UUID

import pytest
from helpers.migrated_databases import address
from helpers.peon_command import Peon
from sqlalchemy import URL

from peon import Database
from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import migrations

PROJECT = UUID(int=1)


@pytest.fixture
def at(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An SQLite database with two events, and a durable subscription that has received one."""
    monkeypatch.setenv("COLUMNS", "240")
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all([ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table")])
        append(database)
        receive(database, 1)
    return "--url", address(migrated_sqlite_url)


def append(database: Database) -> None:
    database.events.append_all([ProjectRenamed(project_id=PROJECT, name="Tides")])


def receive(database: Database, events: int) -> None:
    with database.events.durable_subscription("mail") as subscription:
        for _ in range(events):
            next(subscription)
        subscription.save_position()


def test_a_backup_is_restored(peon: Peon, at: tuple[str, str], migrated_sqlite_url: URL, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    done = peon("backup", file, *at, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document == {
        "database": at[1],
        "file": str(file),
        "events": 2,
        "last_sequence": 2,
        "revision": migrations.revisions()[-1],
        "bytes": file.stat().st_size,
        "removed": [],
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with Database.open(url=migrated_sqlite_url) as database:
        append(database)
        append(database)
        receive(database, 3)

    planned = peon("restore", file, *at, "--dry-run")
    assert planned.code == 0
    assert planned.out.startswith("Would restore 2 events, the last with sequence 2")
    refused = peon("restore", file, *at, input="n\n")
    assert (refused.code, "restore" in refused.out.lower()) == (1, False)
    assert "whose log ends with event 4, by a backup that ends with event 2?" in refused.err
    with Database.open(url=migrated_sqlite_url) as database:
        assert database.events.last_sequence() == 4
    restored = peon("restore", file, *at, input="y\n")

    assert restored.code == 0
    for part in (
        "Restored 2 events, the last with sequence 2",
        "is kept as",
        "Its events 3 to 4 are not in the backup, and new events get these sequences.",
        "new identity",
        "receives events 2 to 2 again; has processed events 3 to 4, which are lost",
    ):
        assert part in restored.out
    with Database.open(url=migrated_sqlite_url) as database:
        assert database.events.last_sequence() == 2
    document = peon("restore", file, *at, "--yes", "--json").document
    assert document["subscriptions"] == [{"name": "mail", "sequence": 1, "previous": 1}]
    assert (document["done"], document["previous_last_sequence"]) == (True, 2)
    assert Path(document["kept"]).exists()


def test_a_database_that_does_not_exist_is_restored_without_a_question(
    peon: Peon, at: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "backup.db.gz"
    assert peon("backup", file, *at).code == 0
    done = peon("restore", file, "--data-dir", tmp_path / "new")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "new" / "peon.db").exists()
    assert "kept" not in done.out
    assert "it may have processed events from there on before" in done.out


def test_a_damaged_backup_fails_with_1(peon: Peon, at: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    file.write_bytes(b"SQLite format 3\0" + bytes(9_000))
    done = peon("restore", file, *at, "--yes")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"peon: {file} is damaged, or not an SQLite database: use another backup\n"
    assert peon("restore", tmp_path / "missing", *at, "--yes").code == 2


def test_an_existing_backup_is_replaced_after_a_question(peon: Peon, at: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    file.write_text("before")
    assert peon("backup", file, *at).code == 1
    assert file.read_text() == "before"
    assert peon("backup", file, *at, "--yes").code == 0


def test_the_newest_backups_are_kept(peon: Peon, at: tuple[str, str], tmp_path: Path) -> None:
    old = tmp_path / "peon-20200101T000000Z.db"
    old.touch()
    done = peon("backup", tmp_path / "peon.db", *at, "--keep", 1)
    assert done.code == 0
    assert f"Removed {old}" in done.out
    assert peon("backup", tmp_path / "peon.db", *at, "--keep", 0).code == 2


def test_a_missing_database_is_unavailable(peon: Peon, tmp_path: Path) -> None:
    done = peon("backup", tmp_path / "backup.db", "--data-dir", tmp_path / "missing")
    assert done.code == 3
    assert [*tmp_path.iterdir()] == []


def test_postgresql_is_backed_up_and_restored(peon: Peon, migrated_postgresql_url: URL, tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    with Database.open(url=migrated_postgresql_url) as database:
        append_one = ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table")
        database.events.append_all([append_one])
    at = ("--url", address(migrated_postgresql_url))
    assert peon("backup", tmp_path / "peon.dump", *at, "--json").document["events"] == 1
    planned = peon("restore", tmp_path / "peon.dump", *at, "--dry-run", "--json")
    assert planned.code == 0
    assert (planned.document["events"], planned.document["previous_last_sequence"]) == (1, 1)
