"""A connection that was never closed is closed under the lock that a fork waits for."""

import gc
import sqlite3
import threading
import warnings
from contextlib import closing
from pathlib import Path

from peon.persistence.backends.sqlite_driver import EventLoopConnection, GatedConnection


def test_a_forgotten_connection_is_closed_while_no_process_can_fork() -> None:
    forgotten = [sqlite3.connect(":memory:", factory=EventLoopConnection, check_same_thread=False)]
    lock = forgotten[0].fork_lock

    def forget() -> None:
        forgotten.clear()
        gc.collect()  # a connection is part of a cycle

    def forget_while_locked() -> bool:
        forgetting = threading.Thread(target=forget)
        with lock:
            forgetting.start()
            forgetting.join(0.2)  # closing takes microseconds
            is_waiting = forgetting.is_alive()
        forgetting.join()
        return is_waiting

    assert forget_while_locked()


def test_a_connection_that_was_not_closed_causes_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sqlite3.connect(":memory:", factory=GatedConnection)
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]


def test_closing_a_connection_releases_its_locks_while_a_cursor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path, factory=GatedConnection, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE numbers (n INTEGER)")
    connection.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(3)])
    connection.execute("BEGIN IMMEDIATE")
    cursor = connection.execute("INSERT INTO numbers VALUES (3), (4) RETURNING n")
    assert cursor.fetchone() == (3,)
    connection.close()

    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO numbers VALUES (5)")
        other.execute("COMMIT")
    del cursor
