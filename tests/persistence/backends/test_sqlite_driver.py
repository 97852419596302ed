"""A connection that was never closed: it is closed under the lock that a fork waits for, and Python is told."""

import gc
import sqlite3
import threading
import warnings
from contextlib import closing

import pytest

from peon.persistence.backends.sqlite_driver import GatedConnection


def test_a_connection_that_was_never_closed_is_reported() -> None:
    def forget() -> None:
        sqlite3.connect(":memory:", factory=GatedConnection)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        forget()
        gc.collect()
    assert [warning.category for warning in warned] == [ResourceWarning]  # once, also where Python warns by itself


@pytest.mark.parametrize("path", [":memory:", "/nowhere/peon.db"])
def test_a_connection_that_was_closed_or_never_opened_is_not_reported(path: str) -> None:
    def use() -> None:
        try:
            with closing(sqlite3.connect(path, factory=GatedConnection)):
                pass
        except sqlite3.OperationalError:
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
        gc.collect()


def test_a_forgotten_connection_is_closed_while_no_process_can_fork() -> None:
    forgotten = [sqlite3.connect(":memory:", factory=GatedConnection, check_same_thread=False)]
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

    with pytest.warns(ResourceWarning, match="never closed"):
        assert forget_while_locked()
