"""Databases that cannot be used raise a clear error and are not changed."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from helpers.secret import SECRET, assert_secret_is_kept
from helpers.unavailable_databases import IMPATIENT, assert_works, files, renamed, sqlite, unavailable
from sqlalchemy import URL, select, text

from peon.persistence import (
    Database,
    EventStore,
    PersistenceError,
    StoreUnavailable,
    create_engine,
)
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.schema import events


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


def test_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()

    with unavailable(sqlite(path), "the file cannot be opened: name a regular file in a folder that this user may"):
        Database.open(url=sqlite(path), maintain_projections=False)

    assert files(tmp_path) == {"data": None}


NOT_DATABASES = {
    "text": b"Dear diary,\n" * 1_000,
    "two bytes": b"x\n",
    "99 bytes": b"SQLite format 3" + bytes(84),
    "random bytes": random.Random(1).randbytes(50_000),
    "random bytes after the magic": b"SQLite format 3\0" + random.Random(2).randbytes(50_000),
    "zeros": bytes(8_192),
    "another kind of database": b"\0\x06\x15\x61\0\0\0\x02" + bytes(4_088),
}


@pytest.mark.parametrize("content", NOT_DATABASES.values(), ids=NOT_DATABASES)
def test_a_file_that_is_not_a_database_is_refused_and_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(content)

    for migrate in (True, False):
        with unavailable(sqlite(path), "the file is not an SQLite database: name another file, or move this one away"):
            Database.open(url=sqlite(path), migrate=migrate, maintain_projections=False)
        assert files(tmp_path) == {"diary.txt": content}


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "peon.db").touch()

    with Database.open(url=sqlite(tmp_path / "peon.db"), maintain_projections=False) as database:
        assert_works(database, [])


@pytest.mark.parametrize("below", ["peon.db", "data/peon.db"])
def test_a_path_through_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "diary.txt").write_text("Dear diary")

    with unavailable(sqlite(tmp_path / "diary.txt" / below), "name a file in a folder that this user may write"):
        Database.open(url=sqlite(tmp_path / "diary.txt" / below), maintain_projections=False)

    assert files(tmp_path) == {"diary.txt": b"Dear diary"}


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "nul\0"):
        with pytest.raises(PersistenceError):
            Database.open(url=sqlite(tmp_path / name), maintain_projections=False)

    assert files(tmp_path) == {}


def test_a_broken_symbolic_link_is_not_mistaken_for_a_database(tmp_path: Path) -> None:
    (tmp_path / "peon.db").symlink_to(tmp_path / "missing" / "peon.db")

    with unavailable(sqlite(tmp_path / "peon.db")):
        Database.open(url=sqlite(tmp_path / "peon.db"), maintain_projections=False)

    assert [path.name for path in tmp_path.iterdir()] == ["peon.db"]


def test_no_file_appears_elsewhere_when_an_open_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (sqlite(tmp_path), URL.create("postgresql+psycopg", host="127.0.0.1", port=1, database="peon")):
        with pytest.raises(StoreUnavailable):
            Database.open(url=url, maintain_projections=False)

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
                Database.open(IMPATIENT, url=sqlite(tmp_path / name), maintain_projections=False)
    opened = [descriptor.resolve() for descriptor in descriptors.iterdir()]
    assert [path for path in opened if path.is_relative_to(tmp_path)] == []


def test_text_that_cannot_be_encoded_is_not_shown(database: Database) -> None:
    refused = unavailable(database.engine.url, "text with a lone surrogate cannot be encoded as UTF-8")
    with refused as caught, DriverErrors(database.engine), database.read_transaction() as connection:
        connection.execute(select(events.c.sequence).where(events.c.event_type == f"{SECRET}\ud800"))
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)
    shown = caught.value.__cause__.object != ""  # a failure report could not encode the text either
    assert not shown
    assert_works(database, [])


def test_a_store_on_an_empty_database_names_the_command_to_run(url: URL) -> None:
    engine = create_engine(url)
    store = EventStore(engine)
    uses: list[Callable[[], object]] = [lambda: store.append_all([renamed()]), store.replay_all, store.last_sequence]
    for use in uses:
        with unavailable(url, "alembic upgrade head"):
            use()
    store.close()
    engine.dispose()


def test_a_database_that_lost_its_tables_is_unavailable(database: Database) -> None:
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


def test_the_error_for_an_unreachable_server_hides_the_password() -> None:
    url = URL.create("postgresql+psycopg", "ada", SECRET, "127.0.0.1", 1, "peon")

    for address in (url, url.render_as_string(hide_password=False)):
        with unavailable(url, "127.0.0.1"):
            Database.open(url=address, maintain_projections=False)


def test_the_error_hides_a_password_in_the_query_of_a_url() -> None:
    url = URL.create("postgresql+psycopg", "ada", None, "127.0.0.1", 1, "peon", {"password": SECRET})

    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as caught:
        Database.open(url=url, maintain_projections=False)

    assert_secret_is_kept(caught.value)


def test_the_error_for_a_missing_database_of_a_server_hides_the_password(postgresql_server: URL) -> None:
    url = postgresql_server.set(database="no_such_database", password=SECRET)

    with unavailable(url, "no_such_database"):
        Database.open(url=url, maintain_projections=False)
