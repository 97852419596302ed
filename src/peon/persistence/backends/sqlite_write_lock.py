"""Turns at the write lock of an SQLite file, so that none of those who write to it starves."""

import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SHORTEST_PAUSE, LONGEST_PAUSE = 0.0001, 0.005
"""Seconds between two attempts to get the lock: a quarter of what was waited, within these bounds."""


class WriteTurn:
    """The turns of one connection to write.

    SQLite waits by trying again after ever longer pauses, of up to 100 ms. Whoever commits and begins anew at once
    has the lock again before anybody else has tried: eight processes that did so starved one another, on a slow disk
    for longer than any timeout (see docs/decisions.md). Here those who wait are known to who comes, and are let go
    first.

    Args:
        folder: Of the file; `None` where it is not known, or no file.
        busy_timeout: Milliseconds, as they are set on the connection.
        pause: Waits for so many seconds.
    """

    def __init__(self, folder: Path | None, busy_timeout: int, pause: Callable[[float], object] = time.sleep) -> None:
        self._waiting = _Waiting(folder)
        self._busy_timeout = busy_timeout
        self._pause = pause
        self._sqlite_waits = True
        self._last = 0.0

    def take(self, connection: sqlite3.Connection, patience: float) -> None:
        """Begins a transaction that has the write lock; in it the connection waits for nobody else.

        Args:
            patience: Seconds to wait for it.

        Raises:
            sqlite3.OperationalError: It was not to be had, or the database cannot be written.
        """
        if self._sqlite_waits:
            # Not put back after each BEGIN: the two statements take a tenth of an append of one event.
            connection.execute("PRAGMA busy_timeout = 0")
            self._sqlite_waits = False
        came = time.monotonic()
        if self._waiting.is_anybody():
            # As if it had waited since its last turn: who has just had one would otherwise try more often than they.
            self._wait(connection, self._last, came + patience)
        elif not _begun(connection):
            self._wait(connection, came, came + patience)
        self._last = time.monotonic()

    def let_sqlite_wait(self, connection: sqlite3.Connection) -> None:
        """So that what follows, and is no turn to write, waits as it does on any connection."""
        if not self._sqlite_waits:
            connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout}")
            self._sqlite_waits = True

    def _wait(self, connection: sqlite3.Connection, since: float, deadline: float) -> None:
        try:
            known = False
            while True:
                known = known or self._waiting.join()
                now = time.monotonic()
                usual = min(max((now - since) / 4, SHORTEST_PAUSE), LONGEST_PAUSE)
                self._pause(random.uniform(0.5, 1.5) * usual)  # noqa: S311 - so that two do not meet again and again
                if _begun(connection, last_attempt=now >= deadline):
                    return
        finally:
            self._waiting.leave()


class _Waiting:
    """Those who wait, in any process: they hold a shared lock on the folder, which ends with the process.

    Where a folder cannot be locked, as on Windows, nobody is known to wait.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __del__(self) -> None:
        self._close()

    def is_anybody(self) -> bool:
        if not self._lock(exclusive=True):
            return True
        self.leave()
        return False

    def join(self) -> bool:
        """Fails while another looks whether anybody waits."""
        return self._lock(exclusive=False)

    def leave(self) -> None:
        # Not by closing alone: a child of a fork may have the descriptor, too.
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


def _begun(connection: sqlite3.Connection, *, last_attempt: bool = False) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if last_attempt or getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True
