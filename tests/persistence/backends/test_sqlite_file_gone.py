"""A file that is deleted, moved or replaced while it is open: nothing is acknowledged, and no empty file is created."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from helpers.gone_files import WAYS, delete, move
from helpers.migrated_databases import file_of, names_in
from helpers.processes import PATIENCE
from helpers.unavailable_databases import NOBODY, assert_works, in_child, renamed, sqlite
from sqlalchemy import URL, event, text

from peon.orchestration import ProjectCreated
from peon.persistence import Database, EventStore, StoreUnavailable, Subscription, create_engine


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(migrated_sqlite_url: URL) -> Iterator[Database]:
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all([created("before")])
        yield database


@pytest.fixture
def path(migrated_sqlite_url: URL) -> Path:
    return file_of(migrated_sqlite_url)


def created(name: str = "tide-table") -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name=name, path=f"/{name}")


def append_within(database: Database) -> None:
    with database.engine.begin() as connection:
        database.events.append_all([created()], connection=connection)


def set_within(database: Database) -> None:
    with database.engine.begin() as connection:
        database.settings.set("key", "value", connection=connection)


def read(database: Database) -> None:
    with database.read_transaction() as connection:
        connection.execute(text("SELECT * FROM events")).all()


CALLS: dict[str, Callable[[Database], object]] = {
    "append": lambda database: database.events.append_all([created()]),
    "append in a transaction": append_within,
    "append with a condition": lambda database: database.events.append_all([created()], command_id=uuid4()),
    "replay": lambda database: database.events.replay_all(),
    "last sequence": lambda database: database.events.last_sequence(),
    "subscribe": lambda database: next(database.events.subscribe()),
    "subscribe by name": lambda database: database.events.durable_subscription("mailer"),
    "read": read,
    "read the state": lambda database: database.read_model.projects(),
    "set": lambda database: database.settings.set("key", "value"),
    "set in a transaction": set_within,
    "get": lambda database: database.settings.get("key"),
    "catch up": lambda database: database.projections.catch_up(),
    "rebuild": lambda database: database.projections.rebuild(),
    "verify": lambda database: database.projections.verify(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_each_call_says_what_happened(
    database: Database, path: Path, way: str, call: Callable[[Database], object]
) -> None:
    WAYS[way](path)
    names = names_in(path.parent)

    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=way) as caught:
            call(database)
        assert str(caught.value).startswith(f"{sqlite(path)}: ")
        assert "migrat" not in str(caught.value)
        assert "alembic" not in str(caught.value)

    assert names_in(path.parent) == names


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux shows where an open file is")
def test_the_error_says_where_the_file_is_now(database: Database, path: Path) -> None:
    move(path)
    with pytest.raises(StoreUnavailable, match=f"moved to {path.with_name('moved.db')} while"):
        database.events.append_all([created()])


def test_a_file_that_was_moved_back_can_be_used_again(database: Database, path: Path) -> None:
    before = database.events.replay_all()
    move(path)
    with pytest.raises(StoreUnavailable):
        database.events.append_all([created("refused")])

    path.with_name("moved.db").rename(path)

    (stored,) = database.events.append_all([created("after")])
    assert stored.sequence == 2
    assert database.events.replay_all() == [*before, stored]


def test_a_file_that_is_gone_between_the_insert_and_the_commit_gets_nothing(
    migrated_sqlite_url: URL, path: Path, way: str
) -> None:
    engine = create_engine(migrated_sqlite_url)
    store = EventStore(engine, on_append=lambda *_: WAYS[way](path))
    with pytest.raises(StoreUnavailable, match=way):
        store.append_all([created()])
    store.close()
    engine.dispose()


def test_a_transaction_of_the_application_is_not_committed(database: Database, path: Path, way: str) -> None:
    with pytest.raises(StoreUnavailable, match=way), database.engine.begin() as connection:
        database.events.append_all([created()], connection=connection)
        WAYS[way](path)


def test_threads_that_share_a_commit_all_get_the_error(database: Database, path: Path, way: str) -> None:
    errors = []

    def append() -> None:
        for _ in range(20):
            try:
                database.events.append_all([created()])
            except StoreUnavailable as error:
                errors.append(error)

    WAYS[way](path)
    threads = [threading.Thread(target=append) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 120
    assert all(way in str(error) for error in errors)


def wait_for_the_next(subscription: Subscription[Any], errors: list[Exception]) -> threading.Thread:
    """Returns a thread that waits in the subscription, once the watcher will wake it."""

    def wait() -> None:
        try:
            next(subscription, None)
        except StoreUnavailable as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    deadline = time.monotonic() + PATIENCE
    while subscription._number is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return waiter


def test_a_waiting_subscription_gets_the_error(database: Database, path: Path, way: str) -> None:
    errors: list[Exception] = []
    with database.events.subscribe(after=1) as subscription:
        waiter = wait_for_the_next(subscription, errors)
        WAYS[way](path)
        waiter.join(PATIENCE)
    assert way in str(errors[0])
    assert path.exists() == (way == "replaced")


def test_the_watcher_of_a_closed_database_creates_no_file(database: Database, path: Path) -> None:
    errors: list[Exception] = []
    with Database.open(url=database.engine.url) as other, other.events.subscribe(after=1) as subscription:
        first = wait_for_the_next(database.events.subscribe(after=1), [])  # the watcher uses this engine
        waiter = wait_for_the_next(subscription, errors)
        database.close()
        first.join(PATIENCE)
        delete(path)
        waiter.join(PATIENCE)
        with pytest.raises(StoreUnavailable, match="deleted"):
            next(subscription)
    assert len(errors) == 1
    assert names_in(path.parent) == []


def test_a_new_database_may_be_created_after_a_close(database: Database, path: Path) -> None:
    delete(path)
    with pytest.raises(StoreUnavailable):
        database.events.append_all([created()])
    database.close()

    with Database.open(url=sqlite(path)) as again:
        (stored,) = again.events.append_all([created("new")])
        assert again.events.replay_all() == [stored]


def test_another_database_at_the_same_path_is_left_alone(database: Database, path: Path) -> None:
    delete(path)
    with Database.open(url=sqlite(path), maintain_projections=False) as other:
        before = other.events.append_all([renamed()])
        with pytest.raises(StoreUnavailable, match="replaced"):
            database.events.append_all([created()])
        database.close()
        assert_works(other, before)
    with Database.open(url=sqlite(path), maintain_projections=False) as again:
        assert again.events.last_sequence() == 2


def test_a_forked_child_expects_the_file_of_its_parent(database: Database, path: Path, way: str) -> None:
    WAYS[way](path)
    names = names_in(path.parent)

    def attempt() -> None:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=way):
                database.events.append_all([created()])

    in_child(attempt)
    assert names_in(path.parent) == names


def test_a_symbolic_link_may_not_lead_elsewhere(database: Database, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with Database.open(url=sqlite(link)) as linked:
        assert len(linked.events.append_all([created("link")])) == 1
        database.close()
        shutil.copy(path, path.with_name("other.db"))
        link.unlink()
        link.symlink_to(path.with_name("other.db"))
        with pytest.raises(StoreUnavailable, match="replaced"):
            linked.events.append_all([created("elsewhere")])


def test_a_uri_is_checked_as_well(migrated_sqlite_url: URL, path: Path, way: str) -> None:
    engine = create_engine(URL.create("sqlite", database=f"file:{path}", query={"uri": "true"}))
    store = EventStore(engine)
    store.append_all([created()])
    WAYS[way](path)
    names = names_in(path.parent)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=way):
            store.append_all([created()])
    store.close()
    assert names_in(path.parent) == names
    engine.dispose()


@pytest.mark.parametrize("address", ["file::memory:", "file:/shared?vfs=memdb"])
def test_a_database_in_memory_with_a_uri_has_no_file(address: str) -> None:
    name, _, vfs = address.partition("?vfs=")
    query = {"uri": "true"} | ({"vfs": vfs} if vfs else {})
    engine = create_engine(URL.create("sqlite", database=name, query=query))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (number)"))
    engine.dispose()


@pytest.mark.parametrize("replaced", [False, True])
def test_appends_without_their_write_ahead_log_are_soon_refused_and_saved_by_close(
    database: Database, path: Path, replaced: bool
) -> None:
    stored = database.events.replay_all()
    log = path.with_name("peon.db-wal")
    log.unlink()
    if replaced:
        log.touch()
    deadline = time.monotonic() + PATIENCE
    with pytest.raises(StoreUnavailable, match="the -wal file beside it was deleted or replaced"):
        while time.monotonic() < deadline:
            stored += database.events.append_all([created()])
    with pytest.raises(StoreUnavailable, match="the -wal file beside it was deleted or replaced"):
        database.events.append_all([created("refused")])

    database.close()

    with Database.open(url=sqlite(path)) as again:
        assert again.events.replay_all() == stored
        assert len(again.events.append_all([created("after")])) == 1


def test_a_folder_that_may_no_longer_be_entered_is_reported(folder: Path) -> None:
    path = folder / "data" / "peon.db"
    Database.open(url=sqlite(path), maintain_projections=False).close()
    if os.geteuid() == 0:
        for owned in (folder, path.parent, path):
            os.chown(owned, NOBODY, NOBODY)

    def attempt() -> None:
        with Database.open(url=sqlite(path), maintain_projections=False) as database:
            database.events.append_all([renamed()])
            path.parent.chmod(0)
            with pytest.raises(StoreUnavailable, match="give this user access to its folder"):
                database.events.append_all([renamed()])
            path.parent.chmod(0o700)
            assert len(database.events.append_all([renamed()])) == 1

    in_child(attempt, as_nobody=True)


def test_a_file_that_disappears_while_a_connection_is_opened_is_not_created_again(folder: Path) -> None:
    path = folder / "data" / "peon.db"
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        database.engine.pool.dispose()
        event.listen(database.engine, "do_connect", lambda *_: path.unlink(missing_ok=True))

        with pytest.raises(StoreUnavailable, match="the file cannot be opened"):
            database.events.last_sequence()

        assert not path.exists()
