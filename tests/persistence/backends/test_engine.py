"""Engines on an SQLite file or in memory: settings of connections, transactions, permissions and paths."""

import multiprocessing
import stat
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from peon.config import AppConfig
from peon.persistence import PersistenceError, create_engine
from peon.persistence.backends.address import database_url
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.sqlite_connections import WAL_SIZE_LIMIT_BYTES

PROCESSES = 6
ROUNDS = 25


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_each_connection_to_a_file_is_set_up(sqlite_url: URL, synchronous: str) -> None:
    engine = create_engine(sqlite_url, synchronous=synchronous, busy_timeout=2.5)  # type: ignore[arg-type]
    with engine.begin():
        pass  # the first transaction that writes chooses the journal of the file
    reader = engine.execution_options(**{READ_ONLY: True})
    with reader.connect() as first, reader.connect() as second:
        for connection in (first, second):
            pragmas = {
                name: connection.scalar(text(f"PRAGMA {name}"))
                for name in (
                    "journal_mode",
                    "synchronous",
                    "busy_timeout",
                    "foreign_keys",
                    "recursive_triggers",
                    "journal_size_limit",
                )
            }
            assert pragmas == {
                "journal_mode": "wal",
                "synchronous": {"FULL": 2, "NORMAL": 1}[synchronous],
                "busy_timeout": 2500,
                "foreign_keys": 1,
                "recursive_triggers": 1,
                "journal_size_limit": WAL_SIZE_LIMIT_BYTES,
            }
    engine.dispose()


def test_a_writer_acquires_the_lock_at_begin_and_a_reader_acquires_none(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url, busy_timeout=0)
    with engine.begin(), engine.connect().execution_options(**{READ_ONLY: True}) as reader:
        assert reader.scalar(text("SELECT 1")) == 1
        with pytest.raises(OperationalError, match="locked"), engine.begin():
            pass
    engine.dispose()


def read_then_write(url: str, together: Barrier) -> None:
    engine = create_engine(url)
    together.wait()
    for _ in range(ROUNDS):
        with engine.begin() as connection:
            count = connection.scalar(text("SELECT n FROM counter"))
            connection.execute(text("UPDATE counter SET n = :n"), {"n": count + 1})
    engine.dispose()


def test_processes_that_read_then_write_neither_fail_nor_lose_a_write(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
    context = multiprocessing.get_context("fork")
    together = context.Barrier(PROCESSES)
    children = [context.Process(target=read_then_write, args=(str(sqlite_url), together)) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0] * PROCESSES
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT n FROM counter")) == PROCESSES * ROUNDS
    engine.dispose()


def test_a_rollback_undoes_statements_and_savepoints(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER UNIQUE)"))
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
        with connection.begin_nested():
            connection.execute(text("INSERT INTO t VALUES (2)"))
        connection.rollback()
        with connection.begin():
            connection.execute(text("INSERT INTO t VALUES (3)"))
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(text("INSERT INTO t VALUES (4)"))
                connection.execute(text("INSERT INTO t VALUES (3)"))
        assert connection.scalars(text("SELECT n FROM t")).all() == [3]
    engine.dispose()


def test_folder_and_files_are_private(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
    folder = Path(str(sqlite_url.database)).parent

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}

    assert modes == {"data": 0o700, "peon.db": 0o600, "peon.db-wal": 0o600, "peon.db-shm": 0o600}
    engine.dispose()


def test_an_existing_file_keeps_its_mode(sqlite_url: URL) -> None:
    path = Path(str(sqlite_url.database))
    path.parent.mkdir()
    path.touch()
    path.chmod(0o640)
    engine = create_engine(sqlite_url)
    with engine.connect():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    engine.dispose()


def test_all_threads_share_a_database_in_memory() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))

    def insert() -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))

    threads = [threading.Thread(target=insert) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM t")) == 8
    engine.dispose()


def test_a_failed_statement_does_not_show_its_parameters(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    with engine.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.execute(text("INSERT INTO missing VALUES (:payload)"), {"payload": "the secret"})
    assert "the secret" not in str(raised.value)
    engine.dispose()


def test_the_configured_database_is_a_file_in_the_data_folder(tmp_path: Path) -> None:
    # These characters have a meaning in a URL.
    folder = tmp_path / "50% of #1?"
    url = database_url(AppConfig(general={"data_dir": folder}))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))

    assert (folder / "peon.db").is_file()
    engine.dispose()


@pytest.mark.parametrize("url", ["", "no url with hunter2", "mysql://ada:hunter2@host/db", "sqlite+nope://hunter2"])
def test_an_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(PersistenceError) as raised:
        create_engine(url)
    assert "hunter2" not in str(raised.value)
    assert "sqlite" in str(raised.value)


def test_a_relative_path_stays_where_it_was_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    engine = create_engine("sqlite:///relative.db")
    monkeypatch.chdir(tmp_path / "there")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
    engine.dispose()

    assert [path.name for path in tmp_path.glob("*/*")] == ["relative.db"]
    assert (tmp_path / "here" / "relative.db").is_file()


def test_a_tilde_in_the_path_is_the_home_folder(tmp_path: Path) -> None:
    engine = create_engine("sqlite:///~/mine/peon.db")
    with engine.begin():
        pass
    engine.dispose()

    assert (tmp_path / "mine" / "peon.db").is_file()
