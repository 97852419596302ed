"""A connection that was never closed is closed under the lock that a fork waits for."""

import gc
import sqlite3
import threading
import warnings

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
