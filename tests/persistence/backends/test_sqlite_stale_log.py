"""A backup that was put beside the -wal file of a crashed process is noticed before it is damaged."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from helpers.unavailable_databases import assert_sound, assert_works, in_child, renamed, sqlite
from sqlalchemy import text

from peon.config import AppConfig, DatabaseConfig
from peon.persistence import Database, EventStore, StoreUnavailable, create_engine


def copied_by_the_driver(path: Path, backup: Path) -> None:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)


def copied_as_a_file(path: Path, backup: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(path, backup)


def vacuumed(path: Path, backup: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")


def crash_after_backup(path: Path, make_backup: Callable[[Path, Path], object], events: tuple[int, int]) -> Path:
    """Leaves the -wal file of a process that died after it had appended to a database that has been backed up."""
    backup = path.with_name("backup.db")

    def attempt() -> None:
        quick = AppConfig(database=DatabaseConfig(synchronous="NORMAL"))
        database = Database.open(quick, url=sqlite(path), maintain_projections=False)
        for number in range(events[1]):
            if number == events[0]:
                make_backup(path, backup)
            if number == sum(events) // 2:  # what was written since the backup is then no longer in the -wal file
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            database.events.append_all([renamed("x" * 2_000)])

    in_child(attempt)
    assert path.with_name("peon.db-wal").stat().st_size > 0
    return backup


@pytest.mark.parametrize("make_backup", [copied_by_the_driver, copied_as_a_file, vacuumed])
def test_a_backup_beside_a_stale_log_is_refused_and_left_as_it_is(
    tmp_path: Path, make_backup: Callable[[Path, Path], object]
) -> None:
    path = tmp_path / "peon.db"
    backup = crash_after_backup(path, make_backup, (403, 553))
    content = backup.read_bytes()
    shutil.copy(backup, path)

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=f"^{sqlite(path)}: the -wal file beside it belongs to another"):
            Database.open(url=sqlite(path), maintain_projections=False)
        assert path.read_bytes() == content

    for suffix in ("-wal", "-shm"):
        path.with_name(f"peon.db{suffix}").unlink()
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, database.events.replay_all())
        assert database.events.last_sequence() == 404
    assert_sound(path)


@pytest.mark.parametrize("events", [(403, 553), (1, 3), (2, 1_200)])
def test_the_log_of_a_crashed_process_is_applied_to_its_own_database(tmp_path: Path, events: tuple[int, int]) -> None:
    path = tmp_path / "peon.db"
    crash_after_backup(path, copied_by_the_driver, events)
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, database.events.replay_all())
        assert database.events.last_sequence() == events[1] + 1
    assert_sound(path)


def test_a_database_that_another_process_uses_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        for number in range(100):
            database.events.append_all([renamed("x" * 5_000)])

            def attempt(number: int = number) -> None:
                with Database.open(url=sqlite(path), maintain_projections=False) as other:
                    assert other.events.last_sequence() == number + 1

            if number % 20 == 0:
                in_child(attempt)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A database whose table of events lacks the last ones, which its index and its counter know."""
    path = tmp_path / "peon.db"
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        database.events.append_all([renamed() for _ in range(10)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        hidden = "name IN ('idx_events_sequence', 'events_refuse_delete')"
        rows = connection.execute(f"SELECT * FROM sqlite_schema WHERE {hidden}").fetchall()
        connection.execute(f"DELETE FROM sqlite_schema WHERE {hidden}")
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM events WHERE sequence > 6")
        connection.execute("PRAGMA writable_schema = ON")
        connection.executemany("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()
    return path


def test_a_log_whose_end_does_not_fit_is_not_opened(damaged: Path) -> None:
    with pytest.raises(StoreUnavailable, match="its log ends with event 6, and 10 events have been numbered"):
        Database.open(url=sqlite(damaged))


def test_a_log_whose_end_does_not_fit_is_not_appended_to(damaged: Path) -> None:
    engine = create_engine(sqlite(damaged))
    store = EventStore(engine)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="its log ends with event 6, and 10 events have been numbered"):
            store.append_all([renamed()])
    with (
        pytest.raises(StoreUnavailable, match="its log ends with event 6"),
        engine.begin() as connection,
    ):
        store.append_all([renamed()], connection=connection)
    assert store.last_sequence() in (6, 10)
    store.close()
    engine.dispose()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_log_whose_last_events_were_removed_by_hand_can_be_used(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "peon.db"
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        before = database.events.append_all([renamed() for _ in range(3)])
        with database.engine.begin() as connection:
            trigger = connection.scalar(text("SELECT sql FROM sqlite_schema WHERE name = 'events_refuse_delete'"))
            connection.execute(text("DROP TRIGGER events_refuse_delete"))
            connection.execute(text("DELETE FROM events WHERE sequence > :kept"), {"kept": kept})
            connection.execute(text(str(trigger)))
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        (stored,) = database.events.append_all([renamed()])
        assert stored.sequence == 4
        assert database.events.replay_all() == [*before[:kept], stored]
    assert_sound(path)


def test_frames_of_a_killed_commit_that_was_overwritten_in_part_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    log = path.with_name("peon.db-wal")

    def crash_after(*statements: str, events: int = 0) -> None:
        def attempt() -> None:
            database = Database.open(url=sqlite(path), maintain_projections=False)
            with database.engine.begin() as connection:
                for statement in statements:
                    connection.execute(text(statement))
            if events:
                database.events.append_all([renamed("x" * 20_000)] * events)

        in_child(attempt)

    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
    crash_after("CREATE TABLE notes (content)", f"INSERT INTO notes {numbers} SELECT randomblob(3000) FROM n")
    before = path.read_bytes(), log.read_bytes()
    crash_after(events=20)
    killed = log.read_bytes()
    path.write_bytes(before[0])
    log.write_bytes(before[1])
    crash_after("UPDATE notes SET content = randomblob(3000)")
    # As if the process with 20 events had been killed after its last write, while others used the database.
    written = log.read_bytes()
    assert len(before[1]) < len(written) < len(killed)
    assert killed.startswith(before[1])
    log.write_bytes(written + killed[len(written) :])

    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert_works(database, [])
    assert_sound(path)
