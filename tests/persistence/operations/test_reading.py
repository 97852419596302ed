"""Reading a database without changing any of its files."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from helpers.migrated_databases import file_of, thaw
from sqlalchemy import URL, text

from peon import Database, EventQuery, PersistenceError, StoreUnavailable
from peon.orchestration import ProjectCreated
from peon.persistence.backends import sqlite_reading
from peon.persistence.log import tag_index
from peon.persistence.migrations import current_revision, revisions
from peon.persistence.operations.reading import opened_for_reading


def project() -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name="a", path="/a")


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [each for each in path.parent.iterdir() if not each.name.endswith("-shm")]
        return {each.name: (each.stat().st_mtime_ns, each.read_bytes()) for each in files}

    before, names = state(), {each.name for each in path.parent.iterdir()}
    yield
    assert state() == before
    assert {each.name for each in path.parent.iterdir()} == names


def test_a_quiet_file_is_read_without_a_trace(migrated_sqlite_url: URL) -> None:
    with unchanged(file_of(migrated_sqlite_url)), opened_for_reading(url=migrated_sqlite_url) as database:
        assert database.events.replay_all() == []
        assert database.events.last_sequence() == 0


def test_a_log_that_a_dead_process_left_stays_where_it_is(migrated_sqlite_url: URL, tmp_path: Path) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all([project()])
        shutil.copytree(file_of(migrated_sqlite_url).parent, tmp_path / "crashed")
    crashed = tmp_path / "crashed" / "peon.db"
    assert crashed.with_name("peon.db-wal").stat().st_size > 0

    with unchanged(crashed), opened_for_reading(url=f"sqlite:///{crashed}") as reading:
        assert len(reading.events.replay_all()) == 1


def test_it_can_be_read_while_another_connection_writes(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as connection:
        database.events.append_all([project()], connection=connection)
        with opened_for_reading(url=migrated_lasting_url) as reading:
            assert reading.events.last_sequence() == 0


@pytest.mark.parametrize("revision", revisions())
def test_every_revision_can_be_read(sqlite_url: URL, revision: str) -> None:
    path = thaw(revision, file_of(sqlite_url))
    with unchanged(path), opened_for_reading(url=sqlite_url) as database:
        assert len(database.events.replay_all()) > 0
        with database.read_transaction() as connection:
            assert current_revision(connection) == revision


def test_what_is_read_cannot_be_written(migrated_lasting_url: URL) -> None:
    with opened_for_reading(url=migrated_lasting_url) as database:
        with pytest.raises(StoreUnavailable):
            database.events.append_all([project()])
        with pytest.raises(StoreUnavailable):
            database.settings.set("a", 1)
        with pytest.raises(StoreUnavailable):
            database.projections.rebuild()
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        assert (database.events.last_sequence(), database.settings.all()) == (0, {})


def test_a_query_does_not_fill_the_index(migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    event = project()
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([event, project()])
    with opened_for_reading(url=migrated_lasting_url) as reading:
        query = EventQuery(project_id=event.project_id)
        assert [stored.event for stored in reading.events.stream(query=query)] == [event]
        with reading.read_transaction() as connection:
            assert connection.scalar(text("SELECT count(*) FROM event_tags")) == 0


def test_tables_can_be_verified(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([project()])
    with opened_for_reading(url=migrated_lasting_url, temporary_tables=True) as reading:
        assert reading.projections.verify() == []


def test_verifying_changes_no_file(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all([project()])
    path = file_of(migrated_sqlite_url)
    with unchanged(path), opened_for_reading(url=migrated_sqlite_url, temporary_tables=True) as reading:
        assert reading.projections.verify() == []


def test_a_subscription_follows(migrated_lasting_url: URL) -> None:
    with (
        Database.open(url=migrated_lasting_url) as database,
        opened_for_reading(url=migrated_lasting_url) as reading,
        reading.events.subscribe() as subscription,
    ):
        stored = database.events.append_all([project()])
        assert next(subscription) == stored[0]
        stored = database.events.append_all([project()])
        assert next(subscription) == stored[0]


def test_a_missing_file_is_not_created(sqlite_url: URL) -> None:
    with pytest.raises(StoreUnavailable, match="there is no database"), opened_for_reading(url=sqlite_url):
        pass
    assert not file_of(sqlite_url).parent.exists()


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(PersistenceError, match="memory"), opened_for_reading(url="sqlite://"):
        pass


def test_a_file_in_a_folder_that_cannot_be_written(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_writing(monkeypatch)
    with unchanged(file_of(migrated_sqlite_url)), opened_for_reading(url=migrated_sqlite_url) as database:
        assert database.events.last_sequence() == 0


def test_the_files_of_a_running_process_are_used(migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        assert sqlite_reading.mode_for_reading(file_of(migrated_sqlite_url)) == "mode=rw"
        refuse_writing(monkeypatch)
        assert sqlite_reading.mode_for_reading(file_of(migrated_sqlite_url)) == "mode=ro"
        database.events.append_all([project()])
        with opened_for_reading(url=migrated_sqlite_url) as reading:
            assert reading.events.last_sequence() == 1
    assert sqlite_reading.mode_for_reading(file_of(migrated_sqlite_url)) == "mode=ro&immutable=1"


def test_a_file_in_rollback_mode_stays_in_it(migrated_sqlite_url: URL) -> None:
    path = file_of(migrated_sqlite_url)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with unchanged(path), opened_for_reading(url=migrated_sqlite_url) as database:
        assert database.events.last_sequence() == 0


def refuse_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `os.access` refuse, which the superuser is never refused."""
    monkeypatch.setattr(sqlite_reading.os, "access", lambda path, mode: mode != os.W_OK)
