"""The locks of consumers on SQLite: a file beside the database, or an entry in memory."""

import os
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary

from sqlalchemy import Pool

from peon.persistence.backends.interface import ConsumerLock
from peon.persistence.runtime.forking import reset_after_fork

if sys.platform != "win32":
    import fcntl


class FileConsumerLock(ConsumerLock):
    """An exclusive lock of the operating system on a file of the name.

    It needs no clock and no writes, and the system ends it with the process, however that ends.

    Args:
        database: The file of the database.
    """

    def __init__(self, database: Path, name: str) -> None:
        digest = sha256(name.encode()).hexdigest()[:32]  # a name may be longer than a file name, and have slashes
        self._path = database.with_name(f"{database.name}-consumer-{digest}")
        self._descriptor: int | None = None
        self._is_locked = False
        reset_after_fork(self, FileConsumerLock._close)

    def __del__(self) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        return self._is_locked

    def acquire(self) -> bool:
        if not self._is_locked:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._is_locked = _try_to_lock(self._descriptor) and self._is_at_its_path(self._descriptor)
            finally:
                if not self._is_locked:
                    self._close()
        return self._is_locked

    def release(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # an empty file that stays does no harm
                if self._is_locked and self._is_at_its_path(self._descriptor):
                    self._path.unlink()  # before the lock ends: afterwards the file may be locked by another consumer
            # Closing is not enough: a child that is being forked may share the descriptor.
            _unlock(self._descriptor)
        self._close()

    def _close(self) -> None:
        """Ends the lock if no other process shares the descriptor; so a forked child leaves it to its parent."""
        descriptor, self._descriptor, self._is_locked = self._descriptor, None, False
        if descriptor is not None:
            os.close(descriptor)

    def _is_at_its_path(self, descriptor: int) -> bool:
        """Returns whether the file was not removed by an earlier holder between opening and locking it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False


class ProcessConsumerLock(ConsumerLock):
    """A lock among the consumers of one process, for a database in memory, and where files have no locks.

    Args:
        pool: Identifies the database.
    """

    def __init__(self, pool: Pool, name: str) -> None:
        self._holders = _holders.setdefault(pool, {})
        self._name = name

    def __del__(self) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        return self._holders.get(self._name) == id(self)

    def acquire(self) -> bool:
        return self._holders.setdefault(self._name, id(self)) == id(self)

    def release(self) -> None:
        if self.is_held:
            del self._holders[self._name]


# By pool and name: the identity of the lock that is held. Changed by single operations of a dictionary, which no
# other thread can interrupt, so that no lock has to be replaced in a forked child.
_holders: WeakKeyDictionary[Pool, dict[str, int]] = WeakKeyDictionary()


def _try_to_lock(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
