"""A backup holds one committed state and is checked; a restore keeps what it replaces, or changes nothing."""

import gzip
import io
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.damaged_files import damage_middle, damage_page
from helpers.secret import SECRET
from sqlalchemy import URL, inspect, text

from peon.orchestration import ProjectCreated, ProjectRenamed
from peon.persistence import (
    BackupReport,
    DamagedFile,
    Database,
    PersistenceError,
    PositionBeyondEnd,
    ResumedSubscription,
    SchemaTooNew,
    StoreUnavailable,
    back_up_database,
    create_engine,
    restore_database,
    upgrade,
)
from peon.persistence.migrations import revisions
from peon.persistence.operations.backups import backing_up, postgresql_programs, restoring, sqlite_files

PROJECT = UUID(int=1)


@pytest.fixture(params=["file", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with two events, a setting and the position of a subscription; its schema is dropped at the end."""
    urls = {"file": "migrated_sqlite_url", "postgresql": "private_schema_url"}
    with Database.open(url=request.getfixturevalue(urls[request.param])) as opened:
        opened.events.append_all(
            [
                ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table"),
                ProjectRenamed(project_id=PROJECT, name="Gezeiten 🌊\n\\t\t"),
            ]
        )
        opened.settings.set("theme", "dark")
        receive(opened, "mail \\ 🌊", 1)
        yield opened


@pytest.fixture
def postgresql_programs_are_installed() -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")


@pytest.fixture
def private_schema_url(postgresql_programs_are_installed: None, postgresql_url: URL) -> Iterator[URL]:
    """Returns the address of a schema that a restore may rename."""
    yield postgresql_url
    schema = str(postgresql_url.query["options"]).partition("=")[2]
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        for name in inspect(connection).get_schema_names():
            if name.startswith(f"{schema}.before-"):
                connection.exec_driver_sql(f'DROP SCHEMA "{name}" CASCADE')
    engine.dispose()


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Path:
    return tmp_path / ("backup.db" if database.engine.dialect.name == "sqlite" else "backup.dump")


def receive(database: Database, name: str, events: int) -> None:
    with database.events.durable_subscription(name) as subscription:
        for _ in range(events):
            next(subscription)
        subscription.save_position()


def rename(database: Database, name: str) -> int:
    return database.events.append_all([ProjectRenamed(project_id=PROJECT, name=name)])[0].sequence


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


@pytest.mark.postgresql_too("pg_dump")
def test_a_database_is_restored_as_it_was(database: Database, file: Path, tmp_path: Path) -> None:
    stored = database.events.replay_all()
    projects, log_id = database.read_model.projects(), database.events.log_id()

    report = back_up_database(database.engine, file)
    assert report == BackupReport(file, 2, 2, revisions()[-1], ())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rename(database, "later")
    receive(database, "mail \\ 🌊", 1)
    receive(database, "new", 3)
    database.close()
    with pytest.raises(PersistenceError, match="allow that it is replaced; it will be kept"):
        restore_database(database.engine, file)
    planned = restore_database(database.engine, file, dry_run=True)
    with Database.open(url=database.engine.url, migrate=False) as unchanged:
        assert unchanged.events.last_sequence() == 3
    restored = restore_database(database.engine, file, replace=True)

    assert planned._replace(log_id=restored.log_id, kept=restored.kept) == restored
    assert restored[:4] == (2, 2, 3, revisions()[-1])
    assert restored.subscriptions == (ResumedSubscription("mail \\ 🌊", 1, 2),)
    with Database.open(url=database.engine.url, migrate=False) as again:
        assert again.events.replay_all() == stored
        assert again.read_model.projects() == projects
        assert again.projections.verify() == []
        assert again.settings.get("theme") == "dark"
        assert again.events.log_id() == restored.log_id != log_id
        assert rename(again, "after") == 3
        with pytest.raises(PositionBeyondEnd):
            again.events.replay_from(9)
    kept = kept_url(database, str(restored.kept))
    with Database.open(url=kept, migrate=False) as replaced:
        assert [event.sequence for event in replaced.events.replay_all()] == [1, 2, 3]
    assert leftovers(tmp_path) == []


def kept_url(database: Database, kept: str) -> URL:
    if database.engine.dialect.name == "sqlite":
        return URL.create("sqlite", database=kept)
    return database.engine.url.update_query_dict({"options": f'-csearch_path="{kept}"'})


def test_a_backup_is_restored_where_nothing_was(database: Database, file: Path, tmp_path: Path) -> None:
    back_up_database(database.engine, file)
    database.close()
    if database.engine.dialect.name == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/new/other.db")
    else:  # only a schema of the same name will do
        engine = database.engine
        schema = str(engine.url.query["options"]).partition("=")[2]
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}")
    restored = restore_database(engine, file)
    assert (restored.events, restored.kept, restored.previous_last_sequence) == (2, None, None)
    assert restored.subscriptions == (ResumedSubscription("mail \\ 🌊", 1, None),)
    engine.dispose()
    with Database.open(url=engine.url, migrate=False) as again:
        assert again.read_model.projects()[0].path == "/tide-table"
    if database.engine.dialect.name == "sqlite":
        assert stat.S_IMODE((tmp_path / "new" / "other.db").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_backup_is_taken_while_others_append(database: Database, file: Path) -> None:
    stopped = threading.Event()

    def append() -> None:
        while not stopped.is_set():
            rename(database, "x" * 1_000)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        report = back_up_database(database.engine, file)
    finally:
        stopped.set()
        thread.join()
    assert 2 <= report.events == report.last_sequence <= database.events.last_sequence()


def test_a_failed_restore_changes_nothing(
    database: Database, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up_database(database.engine, file)
    rename(database, "later")
    database.close()

    if database.engine.dialect.name == "sqlite":
        check = sqlite_files.checked_contents

        def interrupt(path: Path, *arguments: str) -> Any:
            if path.suffix != ".partial":
                raise KeyboardInterrupt
            return check(path, *arguments)

        monkeypatch.setattr(sqlite_files, "checked_contents", interrupt)
    else:
        monkeypatch.setattr(restoring, "contents_of", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        restore_database(database.engine, file, replace=True)
    with Database.open(url=database.engine.url, migrate=False) as again:
        assert again.events.last_sequence() == 3
    assert leftovers(tmp_path) == []
    assert not [*tmp_path.rglob("*before*")]


def raise_interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_damaged_backup_is_refused(database: Database, file: Path) -> None:
    back_up_database(database.engine, file)
    sound = file.read_bytes()
    database.close()
    for wrong in (sound[: len(sound) // 2], b"", b"no backup", sound[:4_096] + bytes(12_288) + sound[16_384:]):
        file.write_bytes(wrong)
        with pytest.raises(PersistenceError, match=r"damaged|error:|no table events"):
            restore_database(database.engine, file, replace=True)
    with pytest.raises(PersistenceError, match="No such file"):
        restore_database(database.engine, file.with_name("missing"), replace=True)
    with Database.open(url=database.engine.url, migrate=False) as again:
        assert again.events.last_sequence() == 2


def test_a_backup_of_a_newer_version_is_refused(database: Database, file: Path) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '999_future'"))
    back_up_database(database.engine, file)
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revisions()[-1]}'"))
    database.close()
    with pytest.raises(SchemaTooNew, match="is a backup at revision 999_future"):
        restore_database(database.engine, file, replace=True)


def test_an_event_that_is_missing_in_the_backup_is_noticed(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backing_up, "events_up_to", lambda *_: 3)
    with pytest.raises(PersistenceError, match="holds 3 events up to 2, but the backup has 2"):
        back_up_database(database.engine, file)
    assert not file.exists()
    assert leftovers(file.parent) == []


def test_an_existing_file_is_only_replaced_on_request(database: Database, file: Path) -> None:
    file.write_text("before")
    with pytest.raises(PersistenceError, match="exists: name another file"):
        back_up_database(database.engine, file)
    assert file.read_text() == "before"
    assert back_up_database(database.engine, file, replace=True).events == 2


def test_only_the_newest_backups_are_kept(database: Database, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        times = iter(datetime(2026, 3, 14, 12, tzinfo=UTC) + timedelta(hours=hour) for hour in range(4))

        @classmethod
        def now(cls, _: Any = None) -> Any:
            return next(cls.times)

    monkeypatch.setattr(backing_up, "datetime", Clock)
    stem, suffix = file.stem, file.suffix
    others = [file.with_name(name) for name in (f"{stem}-old{suffix}", f"other-20200101T000000Z{suffix}")]
    for other in others:
        other.touch()
    reports = [back_up_database(database.engine, file, keep=2) for _ in range(4)]
    names = [f"{stem}-20260314T{hour}0000Z{suffix}" for hour in (12, 13, 14, 15)]
    assert [report.file.name for report in reports] == names
    assert [[path.name for path in report.removed] for report in reports] == [[], [], names[:1], names[1:2]]
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix == suffix and path.is_file()) == sorted(
        [*names[2:], *(other.name for other in others)]
    )
    with pytest.raises(ValueError, match="keep is 0"):
        back_up_database(database.engine, file, keep=0)


# SQLite


@pytest.fixture
def on_sqlite(migrated_sqlite_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_sqlite_url) as opened:
        opened.events.append_all([ProjectCreated(project_id=PROJECT, name="tide-table", path="/tide-table")])
        yield opened


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_backup_is_compressed(on_sqlite: Database, tmp_path: Path, suffix: str) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    calls: list[tuple[int, int]] = []
    file = tmp_path / f"peon.db{suffix}"
    back_up_database(on_sqlite.engine, file, progress=lambda *call: calls.append(call))
    assert file.stat().st_size < 50_000 < calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)
    sound = file.read_bytes()
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    file.write_bytes(sound[:-100])
    with pytest.raises(PersistenceError, match="damaged"):
        restore_database(engine, file)
    assert not (tmp_path / "other.db").exists()
    file.rename(tmp_path / "renamed")  # the content tells, not the name
    (tmp_path / "renamed").write_bytes(sound)
    assert restore_database(engine, tmp_path / "renamed").events == 1


def test_a_backup_has_no_trace_of_what_was_deleted(on_sqlite: Database, tmp_path: Path) -> None:
    for number in range(50):
        on_sqlite.settings.set(f"key {number}", SECRET * 100)
    for number in range(50):
        on_sqlite.settings.delete(f"key {number}")
    back_up_database(on_sqlite.engine, tmp_path / "backup.db")
    assert SECRET.encode() not in (tmp_path / "backup.db").read_bytes()


def test_an_interrupt_leaves_no_backup(on_sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "INSTRUCTIONS_A_REPORT", 10)

    for error in (KeyboardInterrupt, RuntimeError):

        def interrupt(done: int, total: int, error: type[BaseException] = error) -> None:
            if done < total:
                raise error

        with pytest.raises(error):
            back_up_database(on_sqlite.engine, tmp_path / "backup.db", progress=interrupt)
    assert not (tmp_path / "backup.db").exists()
    assert leftovers(tmp_path) == []
    assert rename(on_sqlite, "a") == 2


@pytest.mark.postgresql_too("pg_dump")
def test_a_database_in_use_is_not_replaced(on_sqlite: Database, tmp_path: Path) -> None:
    back_up_database(on_sqlite.engine, tmp_path / "backup.db")
    path = str(on_sqlite.engine.url.database)
    program = (
        f"import sqlite3, sys; c = sqlite3.connect({path!r}); c.execute('SELECT count(*) FROM events').fetchone(); "
    )
    program += "print(); sys.stdin.read()"
    on_sqlite.close()
    with subprocess.Popen(
        ["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreUnavailable, match="is in use by another connection: stop the applications"):
            restore_database(on_sqlite.engine, tmp_path / "backup.db", replace=True)
        other.communicate()
    assert restore_database(on_sqlite.engine, tmp_path / "backup.db", replace=True).events == 1


@contextmanager
def in_use(path: str, by: str) -> Iterator[None]:
    if by == "this process":
        with Database.open(url=f"sqlite:///{path}"):
            yield
        return
    program = f"import sqlite3, sys; c = sqlite3.connect({path!r}); c.execute('SELECT * FROM events').fetchall(); "
    program += "print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def test_a_damaged_database_is_replaced_with_all_its_files(on_sqlite: Database, tmp_path: Path) -> None:
    path = Path(str(on_sqlite.engine.url.database))
    back_up_database(on_sqlite.engine, tmp_path / "backup.db")
    on_sqlite.close()
    damage_page(path, 1, b"no database" * 100)
    path.with_name("peon.db-wal").write_bytes(b"old")
    restored = restore_database(create_engine(on_sqlite.engine.url), tmp_path / "backup.db", replace=True)
    assert restored.previous_last_sequence is None
    kept = Path(str(restored.kept))
    assert kept.read_bytes().startswith(b"no database")
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == b"old"
    assert not path.with_name("peon.db-wal").exists()
    with Database.open(url=on_sqlite.engine.url) as again:
        assert again.events.last_sequence() == 1


def test_a_file_that_is_no_backup_is_refused(on_sqlite: Database, tmp_path: Path) -> None:
    path = Path(str(on_sqlite.engine.url.database))
    target = create_engine(f"sqlite:///{tmp_path}/target.db")
    rename(on_sqlite, "a")
    with pytest.raises(PersistenceError, match="is not a backup but a database in use"):
        restore_database(target, path)
    on_sqlite.close()
    with pytest.raises(PersistenceError, match="is the database itself"):
        restore_database(on_sqlite.engine, path, replace=True)
    with closing(sqlite3.connect(tmp_path / "empty.db")) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(PersistenceError, match=r"empty\.db: it has no table events, so it is not a database of peon"):
        restore_database(target, tmp_path / "empty.db")
    with pytest.raises(PersistenceError, match="is not a path"):
        restore_database(create_engine("sqlite://"), path)
    assert restore_database(target, path).events == 2  # the closed database is a whole file


def test_a_damaged_database_is_not_backed_up(on_sqlite: Database, tmp_path: Path) -> None:
    path = Path(str(on_sqlite.engine.url.database))
    on_sqlite.events.append_all([ProjectRenamed(project_id=PROJECT, name="x" * 500)] * 50)
    on_sqlite.close()
    damage_middle(path, "events")
    engine = create_engine(on_sqlite.engine.url)
    with pytest.raises(StoreUnavailable, match="the file is damaged"):
        back_up_database(engine, tmp_path / "backup.db")
    engine.dispose()
    assert not (tmp_path / "backup.db").exists()


def test_every_page_of_a_backup_is_read(on_sqlite: Database, tmp_path: Path) -> None:
    on_sqlite.events.append_all([ProjectRenamed(project_id=PROJECT, name="x" * 500)] * 50)
    back_up_database(on_sqlite.engine, tmp_path / "backup.db")
    damage_middle(tmp_path / "backup.db", "events")  # counting events reads the index alone
    with pytest.raises(DamagedFile, match=r"backup\.db is damaged"):
        restore_database(create_engine(f"sqlite:///{tmp_path}/other.db"), tmp_path / "backup.db")


def test_a_compressed_backup_is_read_again(
    on_sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backing_up, "decompressing", lambda file, name: nullcontext(io.BytesIO(b"other")))
    with pytest.raises(PersistenceError, match="could not be read back as it was written"):
        back_up_database(on_sqlite.engine, tmp_path / "backup.db.gz")
    assert not (tmp_path / "backup.db.gz").exists()


def test_a_missing_database_is_not_created_by_a_backup(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"missing\.db does not exist"):
        back_up_database(create_engine(f"sqlite:///{tmp_path}/missing.db"), tmp_path / "backup.db")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.postgresql_too("pg_dump")
def test_a_database_in_memory_and_of_the_first_revision_is_backed_up(populated_url: URL, tmp_path: Path) -> None:
    engine = create_engine(populated_url)
    report = back_up_database(engine, tmp_path / "backup.db")
    engine.dispose()
    restored = restore_database(create_engine(f"sqlite:///{tmp_path}/other.db"), tmp_path / "backup.db")
    assert (restored.events, restored.log_id, restored.revision) == (report.events, None, "001_initial")
    with Database.open(url=f"sqlite:///{tmp_path}/other.db", maintain_projections=False) as memory:
        assert memory.events.last_sequence() == report.last_sequence
    with Database.open(url="sqlite://") as memory:
        assert back_up_database(memory.engine, tmp_path / "memory.db").events == 0


def test_a_version_table_of_another_name(lasting_url: URL, tmp_path: Path) -> None:
    if lasting_url.get_backend_name() == "postgresql" and shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    engine = create_engine(lasting_url, version_table="peon_version")
    upgrade(engine)
    report = back_up_database(engine, tmp_path / "backup")
    assert report.revision == restore_database(engine, tmp_path / "backup", dry_run=True).revision
    engine.dispose()
    other = create_engine(lasting_url)
    with pytest.raises(PersistenceError, match="has no revision in the configured version table"):
        restore_database(other, tmp_path / "backup", dry_run=True)
    other.dispose()


def test_gzip_of_a_file_without_name_and_time(on_sqlite: Database, tmp_path: Path) -> None:
    back_up_database(on_sqlite.engine, tmp_path / "a.db.gz")
    assert gzip.decompress((tmp_path / "a.db.gz").read_bytes()).startswith(b"SQLite format 3\0")


# PostgreSQL


def test_without_the_programs_of_postgresql(
    migrated_postgresql_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_programs.shutil, "which", lambda name: None)
    engine = create_engine(migrated_postgresql_url)
    with pytest.raises(PersistenceError, match="pg_dump is not installed, or not on PATH: install the client programs"):
        back_up_database(engine, tmp_path / "backup.dump")
    with pytest.raises(PersistenceError, match="pg_dump is not installed"):
        restore_database(engine, tmp_path / "backup.dump")
    engine.dispose()
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("postgresql_programs_are_installed")
def test_refusals_on_postgresql(migrated_postgresql_url: URL, postgresql_url: URL, tmp_path: Path) -> None:
    engine, empty = create_engine(migrated_postgresql_url), create_engine(postgresql_url)
    with pytest.raises(PersistenceError, match="pg_dump compresses a backup itself"):
        back_up_database(engine, tmp_path / "backup.dump.gz")
    back_up_database(engine, tmp_path / "backup.dump")
    with pytest.raises(PersistenceError, match=r"is a backup of the schema test_.*, but .* uses test_"):
        restore_database(empty, tmp_path / "backup.dump")
    with pytest.raises(PersistenceError, match="no table events"):
        back_up_database(empty, tmp_path / "empty.dump")
    engine.dispose()
    empty.dispose()


@pytest.mark.usefixtures("postgresql_programs_are_installed")
def test_a_password_is_not_among_the_arguments(migrated_postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    engine = create_engine(migrated_postgresql_url.set(password=SECRET))
    programs = postgresql_programs.Programs(engine)
    engine.dispose()
    assert SECRET not in programs._address
    assert programs._environment["PGPASSWORD"] == SECRET
    assert "PGPASSWORD" not in os.environ
