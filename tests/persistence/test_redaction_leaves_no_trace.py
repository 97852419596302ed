"""After a redaction, no byte of the database has what the events said."""

import sqlite3
from collections.abc import Iterator
from datetime import timedelta

import pytest
from helpers.migrated_databases import file_of
from helpers.secret import SECRET, files_with_secret, relations_with_secret
from helpers.streamed_text import OTHER_MESSAGE, OTHER_TURN, SCENE, THREAD, chunk, ended, started
from helpers.word_count_projection import WordCount
from sqlalchemy import URL, Engine, event

from peon.config import AppConfig
from peon.orchestration import ChangesCommitted, ThreadStatus, ThreadStatusChanged
from peon.persistence import Database, EventQuery
from peon.persistence.backends.sqlite import SQLiteBackend

OF_THREAD = EventQuery(thread_id=THREAD)

TOLD = [
    ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.ERROR, error=SECRET * 3),
    *(ChangesCommitted(thread_id=THREAD, commit="c0ffee", message=SECRET * number) for number in (1, 10, 1_000)),
]


def fill(database: Database) -> None:
    """Stores the secret in events, in rows that were deleted since, and in an event that was merged."""
    database.events.append_all(SCENE)
    for event_ in (*started(), chunk(SECRET), chunk(" and "), chunk(SECRET), ended()):
        database.events.append_all([event_])
    database.maintenance.compact(older_than=timedelta(0))
    database.events.append_all([*started(OTHER_TURN, OTHER_MESSAGE), chunk(SECRET, OTHER_TURN, OTHER_MESSAGE)])
    database.events.append_all(TOLD)
    assert list(database.events.stream(query=OF_THREAD, limit=1))  # fills the index of tags


@pytest.fixture(params=["ON", "OFF"])
def secure_delete(request: pytest.FixtureRequest) -> Iterator[str]:
    """Some builds of SQLite overwrite what is deleted, others leave it in free pages."""

    def choose(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA secure_delete={request.param}")

    event.listen(Engine, "connect", choose)
    yield request.param
    event.remove(Engine, "connect", choose)


def test_on_sqlite(migrated_sqlite_url: URL, secure_delete: str) -> None:
    folder = file_of(migrated_sqlite_url).parent
    with Database.open(url=migrated_sqlite_url, projections=[WordCount()]) as database:
        fill(database)
        assert files_with_secret(folder)

        assert database.maintenance.redact(OF_THREAD).remains is None

        assert files_with_secret(folder) == []
        assert database.projections.verify() == []
        with database.engine.connect() as connection:
            expected = ["OFF", "ON"].index(secure_delete)
            assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == expected
    assert files_with_secret(folder) == []


def test_on_sqlite_without_a_vacuum(migrated_sqlite_url: URL, secure_delete: str) -> None:
    folder = file_of(migrated_sqlite_url).parent
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all([*SCENE, *TOLD[1:]])  # whose rows were never changed or moved

        remains = database.maintenance.redact(OF_THREAD, vacuum=False).remains

        assert "full vacuum" in str(remains)
        assert files_with_secret(folder) == []


def test_the_next_call_removes_what_an_interrupted_one_has_left(
    migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = file_of(migrated_sqlite_url).parent
    with Database.open(url=migrated_sqlite_url, projections=[WordCount()]) as database:
        fill(database)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SQLiteBackend, "erase_deleted_content", interrupt)
            database.maintenance.redact(OF_THREAD)
        assert files_with_secret(folder) != []

        assert database.maintenance.redact(OF_THREAD)[:2] == (0, ())
        assert files_with_secret(folder) == []


def test_a_reader_keeps_the_old_pages(migrated_sqlite_url: URL) -> None:
    folder = file_of(migrated_sqlite_url).parent
    with Database.open(AppConfig(database={"busy_timeout": 0.1}), url=migrated_sqlite_url) as database:
        database.events.append_all([*SCENE, *TOLD])
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        with database.read_transaction() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one()
            remains = database.maintenance.redact(OF_THREAD).remains
            assert "the -wal file keeps" in str(remains)
            assert files_with_secret(folder) != []
        assert database.maintenance.redact(OF_THREAD).events == 0
        database.maintenance.vacuum(full=True)
        assert files_with_secret(folder) == []


@pytest.mark.slow
@pytest.mark.alone  # waits for checkpoints of the server
def test_on_postgresql(migrated_postgresql_url: URL) -> None:
    with Database.open(url=migrated_postgresql_url, projections=[WordCount()]) as database:
        fill(database)
        alone = database.engine.execution_options(isolation_level="AUTOCOMMIT")

        assert "VACUUM FULL" in str(database.maintenance.redact(OF_THREAD).remains)

        with alone.connect() as connection:
            assert "events" in relations_with_secret(connection)
        database.maintenance.vacuum(full=True)
        with alone.connect() as connection:
            for table in WordCount.tables:
                connection.exec_driver_sql(f"VACUUM FULL {table.name}")
            assert relations_with_secret(connection) == []
        assert database.projections.verify() == []
