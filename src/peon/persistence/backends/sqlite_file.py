"""Notices that the file of a database was deleted, moved or replaced while it is open.

SQLite keeps a file open whatever happens to its path. Without a check, appends would be acknowledged that no other
process sees and that are lost when the last connection is closed.
"""

import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Never

from peon.persistence.backends.sqlite_inherited_locks import acquire_locks_of_parent
from peon.persistence.backends.sqlite_stale_log import require_fitting_log
from peon.persistence.errors import StoreUnavailable
from peon.persistence.runtime.forking import reset_after_fork

LOG_CHECK_SECONDS = 0.05
"""Between two looks at the -wal file; one with every commit took a twentieth of an append to a file in memory."""


class Identity(NamedTuple):
    """What tells a file from any other, whatever its path is."""

    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> "Identity":
        found = os.stat(path)  # noqa: PTH116 - on the path of every append; Path.stat takes twice as long
        return cls(found.st_dev, found.st_ino)


class OpenFile:
    """The file that one connection has open.

    Attributes:
        identity: The file that was at `path` when it was opened.
    """

    def __init__(self, database: str, path: str, identity: Identity) -> None:
        self._database = database
        self._path = path
        self.identity = identity
        # SQLite names it after the file that a symbolic link leads to.
        self._write_ahead_log = f"{os.path.realpath(path)}-wal"
        self._inode_of_log: int | None = None
        self._next_look_at_log = 0.0

    def require_in_place(self) -> None:
        """Raises `StoreUnavailable` unless the file is still at its path."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - as in `Identity.at`, which costs as much again
        except OSError as error:
            self._refuse(error)
        if found.st_ino != self.identity.inode or found.st_dev != self.identity.device:
            self._refuse(None)

    def remember_write_ahead_log(self) -> None:
        """To be called when the connection has read the file, and so has opened its -wal file."""
        with suppress(OSError):
            self._inode_of_log = os.stat(self._write_ahead_log).st_ino  # noqa: PTH116

    def require_write_ahead_log(self) -> None:
        """Raises `StoreUnavailable` unless the -wal file is the one that the connection writes to.

        SQLite creates it for the first transaction, and leaves it in place as long as a connection is open. What is
        written to a deleted one is saved by `close`, so a look from time to time is enough.
        """
        if (now := time.monotonic()) < self._next_look_at_log:
            return
        try:
            found = os.stat(self._write_ahead_log).st_ino  # noqa: PTH116
        except OSError as error:
            raise self._without_log() from error
        if self._inode_of_log is None:
            self._inode_of_log = found
        elif found != self._inode_of_log:
            raise self._without_log()
        self._next_look_at_log = now + LOG_CHECK_SECONDS

    def _refuse(self, error: OSError | None) -> Never:
        raise StoreUnavailable(f"{self._database}: {_what_happened(self.identity, error)}") from error

    def _without_log(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._database}: the -wal file beside it was deleted or replaced while it was open: close the database, "
            "which saves what was stored before, and open it again"
        )


class DatabaseFile:
    """The file of an engine. All its connections have the same one open, until the engine is disposed of.

    Args:
        database: The name of the database in errors.
        path: `None` if it is not known before the first connection, as with an SQLite URI.
    """

    def __init__(self, database: str, path: Path | None) -> None:
        self._database = database
        self._path = None if path is None else str(path)
        self._expected: Identity | None = None
        reset_after_fork(self, DatabaseFile._lock_in_child)

    @property
    def may_be_created(self) -> bool:
        """Whether no connection has had a file open before."""
        return self._expected is None

    def before_connecting(self) -> Identity | None:
        """Returns the file that is at the path.

        Raises:
            StoreUnavailable: It is not the expected file, or the -wal file beside it is that of another one.
        """
        if self._path is None:
            return None
        try:
            found = Identity.at(self._path)
        except OSError as error:
            if self._expected is None:
                return None  # SQLite has a better explanation
            raise StoreUnavailable(f"{self._database}: {_what_happened(self._expected, error)}") from error
        if self._expected not in (None, found):
            raise StoreUnavailable(f"{self._database}: {_what_happened(self._expected, None)}")
        if self._expected is None:
            require_fitting_log(self._database, self._path)
        return found

    def connected(self, path: str, before: Identity | None) -> OpenFile | None:
        """Returns the file of a new connection; `None` if it has none.

        Args:
            path: Where SQLite has opened it; empty, or a mere name, for a database in memory that has an URI.
            before: What `before_connecting` returned: the file must not have been replaced since.

        Raises:
            StoreUnavailable: The file is not the one that was there before, or not the one of other connections.
        """
        if self._path is None and not os.path.isfile(path):  # noqa: PTH113
            return None
        self._path = self._path or path
        opened = OpenFile(self._database, self._path, before or self._expected or Identity.at(self._path))
        opened.require_in_place()
        self._expected = self._expected or opened.identity
        return opened

    def _lock_in_child(self) -> None:
        with suppress(OSError):
            if self._path is not None and self._expected == Identity.at(self._path):
                acquire_locks_of_parent(self._path)

    def forget(self) -> None:
        """Lets the next connection open or create another file."""
        self._expected = None


def _what_happened(identity: Identity, error: OSError | None) -> str:
    if error is None:
        return (
            "its file was replaced by another one while it was open: close the database in all processes, move the "
            "-wal and -shm files beside it away, put the file there again, and open it again"
        )
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"its file cannot be found any more ({error.strerror}): give this user access to its folder"
    if (now_at := _path_of(identity)) is None:
        return (
            "its file was deleted or moved while it was open: move it back, or close the database, restore a backup "
            "and open it again"
        )
    if now_at:
        return f"its file was moved to {now_at} while it was open: move it back; to move it, close it first"
    return "its file was deleted while it was open: close the database, restore a backup and open it again"


def _path_of(identity: Identity) -> str | None:
    """Returns where a file is that this process has open; empty if it was deleted, `None` if that is not known.

    Nothing is opened here: closing a file would end the locks that SQLite holds on it.
    """
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - of Linux
            descriptor = int(name)
            with suppress(OSError):
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) == identity and stat.S_ISREG(found.st_mode):
                    return os.readlink(f"/proc/self/fd/{name}") if found.st_nlink else ""  # noqa: PTH115
    return None
