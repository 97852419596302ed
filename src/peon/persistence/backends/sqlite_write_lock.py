"""Acquires the write lock of an SQLite file fairly, so that no writer starves."""

import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peon.persistence.backends.sqlite_driver import first_row
from peon.persistence.backends.sqlite_file_locks import is_busy

if sys.platform != "win32":
    import fcntl

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.0001, 0.005
"""Bounds of the pause between two attempts, which is a quarter of the time that a writer has waited already."""


class WriteLock:
    """The write lock of a file, as one connection acquires it.

    SQLite waits by trying again after ever longer pauses, of up to 100 ms. A writer that commits and begins again
    at once therefore gets the lock again before any other writer has tried: eight processes that did so starved one
    another, on a slow disk for longer than any timeout (measured in docs/explanation/decisions/storage.md). Here,
    waiting writers register themselves; a newcomer backs off so that they go first.

    Args:
        folder: The folder of the file; `None` if there is none or it is not known.
        busy_timeout_ms: The busy timeout that is set on the connection.
        pause: Waits for a number of seconds.
    """

    def __init__(
        self, folder: Path | None, busy_timeout_ms: int, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self._waiting_writers = _WaitingWriters(folder)
        self._busy_timeout_ms = busy_timeout_ms
        self._pause = pause
        self._sqlite_waits = True
        self._last_acquired = 0.0

    def begin_immediate(self, connection: sqlite3.Connection, timeout: float) -> None:
        """Begins a transaction that holds the write lock.

        Args:
            timeout: Seconds to wait for the lock.

        Raises:
            sqlite3.OperationalError: The lock could not be acquired in time, or the database cannot be written.
        """
        if self._sqlite_waits:
            # Not restored after each BEGIN: the two statements take a tenth of the time of an append of one event.
            self._sqlite_waits = False  # first: an interrupt in between must not leave it True
            first_row(connection, "PRAGMA busy_timeout = 0")
        start = time.monotonic()
        if self._waiting_writers.exist():
            # Pause as if this writer had waited since it last held the lock. With shorter pauses than the waiting
            # writers it would overtake them.
            self._wait(connection, self._last_acquired, start + timeout)
        elif not _try_to_begin(connection):
            self._wait(connection, start, start + timeout)
        self._last_acquired = time.monotonic()

    def let_sqlite_wait(self, connection: sqlite3.Connection) -> None:
        """Lets SQLite wait for locks as on any connection, for statements that are not a BEGIN of this class."""
        if not self._sqlite_waits:
            first_row(connection, f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
            self._sqlite_waits = True

    def _wait(self, connection: sqlite3.Connection, since: float, deadline: float) -> None:
        try:
            registered = False
            while True:
                registered = registered or self._waiting_writers.register()
                now = time.monotonic()
                usual = min(max((now - since) / 4, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                # Random, so that two writers do not collide again and again.
                self._pause(random.uniform(0.5, 1.5) * usual)  # noqa: S311
                if _try_to_begin(connection, last_attempt=now >= deadline):
                    return
        finally:
            self._waiting_writers.unregister()


class _WaitingWriters:
    """The writers of all processes that wait: each holds a shared lock on the folder, which ends with its process.

    If the folder cannot be locked, as on Windows, no writer is known to wait.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __del__(self) -> None:
        self._close()

    def exist(self) -> bool:
        try:
            if not self._lock(exclusive=True):
                return True
            self.unregister()
        except BaseException:  # a signal handler has raised: the connection stays in the pool, and so would the lock
            self.unregister()
            raise
        return False

    def register(self) -> bool:
        """Returns whether it succeeded: it fails while another writer calls `exist`."""
        return self._lock(exclusive=False)

    def unregister(self) -> None:
        # Closing the descriptor is not enough: a forked child may share it.
        if sys.platform != "win32" and self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _lock(self, *, exclusive: bool) -> bool:
        if sys.platform == "win32" or self._folder is None:
            return True
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            self._folder = None
            self._close()
        return True

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _try_to_begin(connection: sqlite3.Connection, *, last_attempt: bool = False) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if last_attempt or not is_busy(error):
            raise
        return False
    return True
