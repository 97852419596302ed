"""Databases that cannot be used: the store says so, harms nothing, and works again once they can."""

import asyncio
import os
import random
import resource
import sqlite3
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.secret import SECRET, assert_secret_is_kept
from sqlalchemy import URL, text

from peon.config import AppConfig, DatabaseConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import (
    Database,
    EventStore,
    PersistenceError,
    StoredEvent,
    StoreUnavailable,
    create_engine,
)
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.migrations import migration_transaction


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


NOBODY = 65_534
IMPATIENT = AppConfig(database=DatabaseConfig(busy_timeout=0.3))

Stored = list[StoredEvent[OrchestrationEvent]]


def renamed(name: str = "tide-table") -> ProjectRenamed:
    return ProjectRenamed(project_id=UUID(int=1), name=name)


def sqlite(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def files(folder: Path) -> dict[str, bytes | None]:
    """Returns what is in a folder and below: the content of files, `None` for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def unavailable(url: URL, saying: str = "") -> Iterator[pytest.ExceptionInfo[StoreUnavailable]]:
    """What every such error has: the database's name, what to do, and the driver's error as its cause."""
    with pytest.raises(StoreUnavailable) as caught:
        yield caught
    assert str(caught.value).startswith(url.render_as_string(hide_password=True) + ": ")
    assert saying in str(caught.value)
    assert caught.value.__cause__ is not None
    assert_secret_is_kept(caught.value)


def assert_works(database: Database, before: Stored) -> None:
    """Nothing was stored since, and the next append is given the next number."""
    assert database.events.replay_all() == before
    (stored,) = database.events.append_all([renamed()])
    assert stored.sequence == len(before) + 1
    assert database.events.replay_all() == [*before, stored]


def assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def in_child(action: Callable[[], None], *, as_nobody: bool = False) -> None:
    """Runs it in a process of its own, whose rights and limits may then be taken; root could write anything."""
    if as_nobody and os.geteuid() == 0:
        # Nothing is left to import, which nobody might not be allowed to.
        Database.open(url="sqlite://", projections=False).close()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, as the runner has some
        child = os.fork()
    if not child:
        try:
            if as_nobody and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            os.write(writer, b"done")
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as report:
        told = report.read()
    assert os.waitpid(child, 0)[1] == 0
    assert told == "done", told


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the user nobody can reach, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        monkeypatch.setenv("XDG_CONFIG_HOME", name)
        yield path
        for inner in [path, *path.rglob("*")]:
            inner.chmod(0o700)


def fill(url: URL, count: int = 3) -> Stored:
    """Leaves a database of so many events; no -wal file is left."""
    with Database.open(url=url, projections=False) as database:
        return database.events.append_all([renamed(f"name {n}") for n in range(count)])


# What is no database


def test_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()

    with unavailable(sqlite(path), "the file cannot be opened: it must be a file, in a folder that this user may"):
        Database.open(url=sqlite(path), projections=False)

    assert files(tmp_path) == {"data": None}


NO_DATABASES = {
    "text": b"Dear diary,\n" * 1_000,
    "two bytes": b"x\n",
    "99 bytes": b"SQLite format 3" + bytes(84),
    "random bytes": random.Random(1).randbytes(50_000),
    "random bytes after the magic": b"SQLite format 3\0" + random.Random(2).randbytes(50_000),
    "zeros": bytes(8_192),
    "another kind of database": b"\0\x06\x15\x61\0\0\0\x02" + bytes(4_088),
}


@pytest.mark.parametrize("content", NO_DATABASES.values(), ids=NO_DATABASES)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(content)

    for migrate in (True, False):
        with unavailable(sqlite(path), "the file is not an SQLite database: name another, or move it away"):
            Database.open(url=sqlite(path), migrate=migrate, projections=False)
        assert files(tmp_path) == {"diary.txt": content}


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "peon.db").touch()

    with Database.open(url=sqlite(tmp_path / "peon.db"), projections=False) as database:
        assert_works(database, [])


@pytest.mark.parametrize("below", ["peon.db", "data/peon.db"])
def test_a_path_through_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "diary.txt").write_text("Dear diary")

    with unavailable(sqlite(tmp_path / "diary.txt" / below), "name a file in a folder that this user may write"):
        Database.open(url=sqlite(tmp_path / "diary.txt" / below), projections=False)

    assert files(tmp_path) == {"diary.txt": b"Dear diary"}


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "nul\0"):
        with pytest.raises(PersistenceError):
            Database.open(url=sqlite(tmp_path / name), projections=False)

    assert files(tmp_path) == {}


def test_a_symbolic_link_into_the_void_is_not_mistaken_for_a_database(tmp_path: Path) -> None:
    (tmp_path / "peon.db").symlink_to(tmp_path / "missing" / "peon.db")

    with unavailable(sqlite(tmp_path / "peon.db")):
        Database.open(url=sqlite(tmp_path / "peon.db"), projections=False)

    assert [path.name for path in tmp_path.iterdir()] == ["peon.db"]


def test_no_file_appears_elsewhere_when_an_open_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (sqlite(tmp_path), URL.create("postgresql+psycopg", host="127.0.0.1", port=1, database="peon")):
        with pytest.raises(StoreUnavailable):
            Database.open(url=url, projections=False)

    assert files(tmp_path) == {}


def test_a_failed_open_keeps_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("Dear diary")
    (tmp_path / "locked.db").touch()

    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("only Linux shows which files are open")
    with closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for name in ("diary.txt", "locked.db"):
            with pytest.raises(StoreUnavailable):
                Database.open(IMPATIENT, url=sqlite(tmp_path / name), projections=False)
    opened = [descriptor.resolve() for descriptor in descriptors.iterdir()]
    assert [path for path in opened if path.is_relative_to(tmp_path)] == []


def test_text_that_cannot_be_sent_is_not_shown(database: Database) -> None:
    with unavailable(database.engine.url, "text with a lone surrogate cannot be encoded as UTF-8") as caught:
        list(database.events.stream(event_types=[f"{SECRET}\ud800"]))
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)
    shown = caught.value.__cause__.object != ""  # which the report of a failure could not encode either
    assert not shown
    assert_works(database, [])


# What may not be written


@pytest.mark.parametrize("below", ["peon.db", "data/peon.db"])
def test_a_folder_that_may_not_be_written_is_refused(folder: Path, below: str) -> None:
    folder.chmod(0o555)

    def attempt() -> None:
        with unavailable(sqlite(folder / below), "in a folder that this user may write"):
            Database.open(url=sqlite(folder / below), projections=False)

    in_child(attempt, as_nobody=True)
    assert files(folder) == {}


def test_an_empty_file_in_a_folder_that_may_not_be_written_is_refused(folder: Path) -> None:
    path = folder / "peon.db"
    path.touch()
    path.chmod(0o666)
    folder.chmod(0o555)

    def attempt() -> None:
        with unavailable(sqlite(path), "folder"):
            Database.open(url=sqlite(path), projections=False)

    in_child(attempt, as_nobody=True)
    assert files(folder) == {"peon.db": b""}


def read_and_fail_to_append(url: URL, expected: Stored) -> None:
    """SQLite cannot read such a database at all where it cannot make the -shm file that goes with it."""
    try:
        database = Database.open(url=url, projections=False)
    except StoreUnavailable:
        with unavailable(url, "this user"):
            Database.open(url=url, projections=False)
        return
    with database:
        for _ in range(2):
            assert database.events.replay_all() == expected
            with unavailable(url, "it is read-only: give this user the right to write the file and its folder"):
                database.events.append_all([renamed()])
        assert database.events.last_sequence() == len(expected)


@pytest.mark.parametrize(
    ("of_file", "of_folder"), [(0o444, 0o777), (0o444, 0o555), (0o666, 0o555)], ids=["file", "both", "folder"]
)
def test_a_database_that_may_not_be_written_is_not_appended_to(folder: Path, of_file: int, of_folder: int) -> None:
    path = folder / "data" / "peon.db"
    before = fill(sqlite(path))
    path.chmod(of_file)
    path.parent.chmod(of_folder)
    content = path.read_bytes()

    in_child(lambda: read_and_fail_to_append(sqlite(path), before), as_nobody=True)

    assert path.read_bytes() == content
    path.parent.chmod(0o777)
    for file in path.parent.iterdir():
        file.chmod(0o666)

    def append() -> None:
        with Database.open(url=sqlite(path), projections=False) as database:
            assert_works(database, before)

    in_child(append, as_nobody=True)
    assert_sound(path)


def test_a_store_works_again_when_its_database_may_be_written_again(folder: Path) -> None:
    path = folder / "peon.db"
    before = fill(sqlite(path))

    def attempt() -> None:
        with Database.open(url=sqlite(path), projections=False) as database:
            # As if the file system were mounted anew, read-only; which takes more rights than a test has.
            with closing(database.engine.raw_connection()) as connection:  # the pool's only one
                connection.cursor().execute("PRAGMA query_only = ON")
            with unavailable(sqlite(path), "it is read-only"):
                database.events.append_all([renamed()])
            with closing(database.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA query_only = OFF")
            assert_works(database, before)

    in_child(attempt)


def test_a_database_that_may_not_be_read_is_refused(folder: Path) -> None:
    path = folder / "data" / "peon.db"
    before = fill(sqlite(path))
    path.parent.chmod(0o777)
    path.chmod(0)

    def attempt() -> None:
        with unavailable(sqlite(path), "this user may"):
            Database.open(url=sqlite(path), projections=False)

    in_child(attempt, as_nobody=True)
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o600)
    with Database.open(url=sqlite(path), projections=False) as database:
        assert_works(database, before)


# A full disk


def append_until_full(database: Database) -> Stored:
    """Returns what was acknowledged before the first append that failed."""
    sizes = random.Random(0)
    acknowledged: Stored = []
    for _ in range(100_000):
        batch = [renamed("ł" * sizes.choice([1, 100, 5_000])) for _ in range(sizes.choice([1, 1, 2, 30]))]
        try:
            acknowledged += database.events.append_all(batch)
        except StoreUnavailable:
            with unavailable(database.engine.url, "the disk "):
                database.events.append_all(batch)
            return acknowledged
    raise AssertionError("the disk was never full")


def survive_a_full_disk(path: Path, fill_disk: Callable[[], object], free_disk: Callable[[], object]) -> None:
    with Database.open(url=sqlite(path), projections=False) as database:
        before = database.events.append_all([renamed("before")])
        fill_disk()

        acknowledged = append_until_full(database)

        assert database.events.replay_all() == before + acknowledged
        with unavailable(sqlite(path), "the disk "):
            database.events.append_all([renamed("x" * 10_000_000)])
        assert database.events.replay_all() == before + acknowledged
        free_disk()
        assert_sound(path)
        assert_works(database, before + acknowledged)
        after = database.events.replay_all()
    with Database.open(url=sqlite(path), projections=False) as database:
        assert_works(database, after)
    assert_sound(path)


def limit_files(size: int) -> None:
    """Python ignores the signal, so that the system's answer to a write beyond is an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("size", [150_000, 700_000])
def test_a_limit_of_file_sizes_loses_nothing_that_was_acknowledged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "peon.db"

    in_child(lambda: survive_a_full_disk(path, lambda: limit_files(size), lambda: limit_files(resource.RLIM_INFINITY)))


def test_a_limit_of_file_sizes_stops_no_reader(tmp_path: Path) -> None:
    before = fill(sqlite(tmp_path / "peon.db"))

    def attempt() -> None:
        limit_files(65_536)  # what SQLite shares between processes needs half of that
        with Database.open(url=sqlite(tmp_path / "peon.db"), projections=False) as database:
            assert database.events.replay_all() == before

    in_child(attempt)


@pytest.mark.parametrize("size", [0, 4_096, 50_000])
def test_a_database_that_does_not_fit_is_not_left_half_made(tmp_path: Path, size: int) -> None:
    path = tmp_path / "peon.db"

    def attempt() -> None:
        limit_files(size)
        with unavailable(sqlite(path), "the disk "):
            Database.open(url=sqlite(path), projections=False)
        limit_files(resource.RLIM_INFINITY)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == []
        with Database.open(url=sqlite(path), projections=False) as database:
            assert_works(database, [])

    in_child(attempt)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a disk, and not in every container")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    filler = small_disk / "filler"

    survive_a_full_disk(small_disk / "peon.db", lambda: filler.write_bytes(bytes(1_000_000)), filler.unlink)


def test_a_disk_that_is_full_already_is_told(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))

    with unavailable(sqlite(small_disk / "peon.db"), "the disk "):
        Database.open(url=sqlite(small_disk / "peon.db"), projections=False)

    filler.unlink()
    with Database.open(url=sqlite(small_disk / "peon.db"), projections=False) as database:
        assert_works(database, [])


def test_a_disk_that_became_read_only_is_told(small_disk: Path) -> None:
    before = fill(sqlite(small_disk / "peon.db"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    read_and_fail_to_append(sqlite(small_disk / "peon.db"), before)

    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Database.open(url=sqlite(small_disk / "peon.db"), projections=False) as database:
        assert_works(database, before)


# A lock


@contextmanager
def locked(path: Path, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(begin)
        yield other
        other.execute("ROLLBACK")


@contextmanager
def taking(at_least: float, at_most: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert at_least <= time.monotonic() - start < at_most


LOCKED = "it is locked by another connection: end what holds it"


def test_an_append_waits_for_a_lock_and_then_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(IMPATIENT, url=sqlite(path), projections=False) as database:
        before += database.events.append_all([renamed()])

        for _ in range(2):
            with locked(path), taking(0.3, 5), unavailable(sqlite(path), LOCKED):
                database.events.append_all([renamed(), renamed()])

            assert_works(database, before)
            before = database.events.replay_all()
    assert_sound(path)


def test_an_append_does_not_wait_when_told_so(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    config = AppConfig(database=DatabaseConfig(busy_timeout=0))
    with Database.open(config, url=sqlite(path), projections=False) as database:
        with locked(path), taking(0, 5), unavailable(sqlite(path), "database.busy_timeout"):
            database.events.append_all([renamed()])

        assert_works(database, before)


def test_a_lock_of_the_own_process_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(IMPATIENT, url=sqlite(path), projections=False) as database:
        with database.engine.begin(), unavailable(sqlite(path), LOCKED):
            database.events.append_all([renamed()])

        assert_works(database, before)


def test_a_lock_blocks_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path))
    with Database.open(url=sqlite(path), projections=False) as database, locked(path) as other:
        other.execute("INSERT INTO events (event_type, payload, stored_at) VALUES ('x', 'not committed', '')")

        with taking(0, 5):
            assert database.events.replay_all() == before
            assert database.events.last_sequence() == len(before)
            assert list(database.events.stream(after=1)) == before[1:]
            with Database.open(url=sqlite(path), projections=False) as second:
                assert second.events.replay_all() == before
            with Database.open(url=sqlite(path), migrate=False, projections=False) as third:
                assert third.events.replay_all() == before


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_lock_on_a_database_that_must_be_migrated_is_told(tmp_path: Path, begin: str, mode: str) -> None:
    path = tmp_path / "peon.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")

    with locked(path, begin), taking(0.3, 5), unavailable(sqlite(path), LOCKED):
        Database.open(IMPATIENT, url=sqlite(path), projections=False)

    with Database.open(IMPATIENT, url=sqlite(path), projections=False) as database:
        assert_works(database, [])


def test_an_append_outside_the_transaction_of_its_own_thread_is_told_what_to_do(lasting_url: URL) -> None:
    with Database.open(IMPATIENT, url=lasting_url, projections=False) as database:
        with database.engine.begin() as connection:
            before = database.events.append_all([renamed()], connection=connection)

            with taking(0.3, 5), unavailable(database.engine.url, "pass it as connection=…), or raise database.busy_"):
                database.events.append_all([renamed()])

        assert_works(database, before)


def test_threads_that_wait_for_a_forgotten_transaction_are_told_at_the_same_time(lasting_url: URL) -> None:
    with Database.open(IMPATIENT, url=lasting_url, projections=False) as database, ThreadPoolExecutor(8) as pool:
        with database.engine.begin() as connection:
            before = database.events.append_all([renamed()], connection=connection)

            with taking(0.3, 2):  # one that was alone, and those that came meanwhile
                appends = [pool.submit(database.events.append_all, [renamed()]) for _ in range(8)]
                for append in appends:
                    assert "database.busy_timeout" in str(append.exception(30))

        assert_works(database, before)


def test_an_event_loop_is_told_too(lasting_url: URL) -> None:
    async def append() -> None:
        async with await AsyncDatabase.open(IMPATIENT, url=lasting_url, projections=False) as database:
            async with database.engine.begin() as connection:
                await database.events.append_all([renamed()], connection=connection)
                with taking(0.3, 5), unavailable(database.engine.url, "database.busy_timeout"):
                    await database.events.append_all([renamed()])
            assert len(await database.events.append_all([renamed()])) == 1

    asyncio.run(append())


def test_a_migration_that_waits_for_another_is_told(lasting_url: URL) -> None:
    engine = create_engine(lasting_url)
    with migration_transaction(engine), taking(0.3, 5), unavailable(engine.url, "database.busy_timeout"):
        Database.open(IMPATIENT, url=lasting_url, projections=False)
    engine.dispose()

    Database.open(IMPATIENT, url=lasting_url, projections=False).close()


def test_the_transactions_of_an_application_wait_as_the_server_says(migrated_postgresql_url: URL) -> None:
    with Database.open(IMPATIENT, url=migrated_postgresql_url, projections=False) as database:
        database.events.append_all([renamed()])
        database.events.close()
        with database.engine.begin() as connection:  # the one that has appended
            database.events.append_all([renamed()], connection=connection)
            assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_a_lock_on_a_table_of_a_server_is_told(postgresql_url: URL) -> None:
    options = str(postgresql_url.query["options"])
    with Database.open(
        url=postgresql_url.update_query_dict({"options": f"{options} -clock_timeout=100"}), projections=False
    ) as database:
        before = database.events.append_all([renamed()])
        url = database.engine.url
        with database.engine.begin() as other:
            other.execute(text("LOCK TABLE events IN EXCLUSIVE MODE"))

            with taking(0.1, 5), unavailable(url, LOCKED):  # the server's own limit, which is not raised
                database.events.append_all([renamed()])
            assert database.events.replay_all() == before

        assert_works(database, before)


# Damage


def overwrite(path: Path, first: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(content)


def overwrite_each(path: Path, places: range) -> None:
    for place in places:
        overwrite(path, place, random.Random(place).randbytes(512))


DAMAGES: dict[str, Callable[[Path, int], object]] = {
    "random bytes in the middle": lambda path, size: overwrite(path, size // 2, random.Random(3).randbytes(65_536)),
    "zeros in the middle": lambda path, size: overwrite(path, size // 2, bytes(65_536)),
    "random bytes all over": lambda path, size: overwrite_each(path, range(8_192, size, 20_000)),
    "the second half cut off": lambda path, size: os.truncate(path, size // 2),
    "all but the header cut off": lambda path, _: os.truncate(path, 4_096),
    "all but part of the header cut off": lambda path, _: os.truncate(path, 1_000),
    "the tables' definitions": lambda path, _: overwrite(path, 100, random.Random(4).randbytes(3_900)),
    # SQLite quotes it in its message, which the driver then fails to decode.
    "a table's definition": lambda path, _: path.write_bytes(
        path.read_bytes().replace(b"CREATE TABLE events", b"CREATE \xff\xff\xff\xff\xff events")
    ),
    "the tables' roots": lambda path, _: overwrite(path, 4_096, random.Random(5).randbytes(4_096 * 10)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_told_by_errors_of_this_package(
    tmp_path: Path, damage: Callable[[Path, int], object]
) -> None:
    path = tmp_path / "peon.db"
    with Database.open(url=sqlite(path), projections=False) as database:
        before = database.events.append_all([renamed(f"{n} " + "x" * (n % 7) * 1_000) for n in range(1_000)])
    damage(path, path.stat().st_size)
    told: list[PersistenceError] = []

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except PersistenceError as error:  # anything else fails the test
            told.append(error)
            return None

    if opened := attempt(lambda: Database.open(url=sqlite(path), projections=False)):
        with opened as database:
            replayed = attempt(database.events.replay_all)
            assert replayed is None, "damage was not noticed"
            attempt(lambda: database.events.replay_all(undecodable="keep"))
            attempt(lambda: list(database.events.stream(after=500, event_types=["ProjectRenamed"])))
            attempt(database.events.last_sequence)
            attempt(lambda: database.events.append_all([renamed()]))
            attempt(lambda: database.events.append_all([renamed("x" * 10_000)] * 100))
            # What comes before the damage can still be read, or nothing can.
            assert attempt(lambda: list(database.events.stream(limit=1))) in (before[:1], None)
    assert told
    for error in told:
        assert error.__cause__ is not None or not isinstance(error, StoreUnavailable)
        if isinstance(error, StoreUnavailable):
            assert str(error).startswith(f"{sqlite(path)}: ")


def test_a_damaged_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    fill(sqlite(path), 3_000)
    overwrite(path, path.stat().st_size // 8_192 * 4_096, bytes(8_192))  # two whole pages

    with (
        Database.open(url=sqlite(path), projections=False) as database,
        unavailable(sqlite(path), "damaged: restore a backup"),
    ):
        database.events.replay_all()


def test_rows_that_damage_turned_into_nulls_are_told(tmp_path: Path) -> None:
    path = tmp_path / "peon.db"
    before = fill(sqlite(path), 1_000)
    # Not the beginning of the page, so that SQLite still finds rows in it: all their columns are NULL.
    overwrite(path, path.stat().st_size // 16_384 * 3 * 4_096 + 1_000, bytes(3_096))

    with Database.open(url=sqlite(path), projections=False) as database:
        assert list(database.events.stream(limit=100)) == before[:100]
        with pytest.raises(PersistenceError):
            database.events.replay_all()
        with suppress(PersistenceError):
            database.events.replay_all(undecodable="keep")


# Tables that are not there


def test_a_store_on_an_empty_database_names_the_command_to_run(url: URL) -> None:
    engine = create_engine(url)
    store = EventStore(engine)
    uses: list[Callable[[], object]] = [lambda: store.append_all([renamed()]), store.replay_all, store.last_sequence]
    for use in uses:
        with unavailable(url, "alembic upgrade head"):
            use()
    store.close()
    engine.dispose()


def test_a_database_that_was_emptied_is_told(database: Database) -> None:
    before = database.events.append_all([renamed()])
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE events RENAME TO away"))

    uses: list[Callable[[], object]] = [lambda: database.events.append_all([renamed()]), database.events.replay_all]
    for use in uses:
        with unavailable(database.engine.url, "events"):
            use()

    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO events"))
    assert_works(database, before)


# A server


def test_a_server_that_does_not_answer_is_told_without_the_password() -> None:
    url = URL.create("postgresql+psycopg", "ada", SECRET, "127.0.0.1", 1, "peon")

    for address in (url, url.render_as_string(hide_password=False)):
        with unavailable(url, "127.0.0.1"):
            Database.open(url=address, projections=False)


def test_a_password_in_the_query_of_a_url_is_not_told_either() -> None:
    url = URL.create("postgresql+psycopg", "ada", None, "127.0.0.1", 1, "peon", {"password": SECRET})

    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as caught:
        Database.open(url=url, projections=False)

    assert_secret_is_kept(caught.value)


def test_a_database_that_a_server_does_not_have_is_told_without_the_password(postgresql_server: URL) -> None:
    url = postgresql_server.set(database="no_such_database", password=SECRET)

    with unavailable(url, "no_such_database"):
        Database.open(url=url, projections=False)


# Addresses that are none

NO_ADDRESSES = {
    "nothing": "",
    "a word": "peon",
    "a path": f"/home/ada/{SECRET}/peon.db",
    "no slashes": f"postgresql+psycopg:ada:{SECRET}@127.0.0.1/peon",
    "SQLite with two slashes": "sqlite://peon.db",
    "SQLite on a host": f"sqlite://ada:{SECRET}@127.0.0.1/peon.db",
    "port that is a word": f"postgresql+psycopg://ada:{SECRET}@127.0.0.1:port/peon",
    "password that is taken for a port": f"postgresql+psycopg://127.0.0.1:{SECRET}/peon",
    "another backend": f"mysql+pymysql://ada:{SECRET}@127.0.0.1/peon",
    "backend that does not exist": f"nonsense://ada:{SECRET}@127.0.0.1/peon",
    "driver that does not exist": f"postgresql+nonsense://ada:{SECRET}@127.0.0.1/peon",
    "driver of SQLite that does not exist": "sqlite+nonsense:///peon.db",
    "not even text": 5,
}


@pytest.mark.parametrize("address", NO_ADDRESSES.values(), ids=NO_ADDRESSES)
def test_what_is_no_address_is_refused_without_the_password(
    address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Database.open(url=address, projections=False), lambda: create_engine(address)):
        with pytest.raises(PersistenceError) as caught:
            use()
        assert_secret_is_kept(caught.value)
        if not caught.value.__cause__:
            assert caught.value.__suppress_context__ or caught.value.__context__ is None

    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("address", "saying"),
    [
        (f"mysql+pymysql://ada:{SECRET}@127.0.0.1/peon", "mysql; only sqlite and postgresql are supported"),
        ("peon", "not one of SQLAlchemy: give sqlite:///… or postgresql+psycopg://…"),
        ("postgresql+nonsense://127.0.0.1/peon", "asks for nonsense; give postgresql+psycopg"),
    ],
)
def test_what_is_no_address_is_refused_with_the_remedy(address: str, saying: str) -> None:
    with pytest.raises(PersistenceError) as caught:
        Database.open(url=address, projections=False)

    assert saying in str(caught.value)
