"""Acquires the locks of an SQLite file in a forked child, which inherits none.

SQLite in the child takes the parent's locks for its own: a new connection does not acquire what one of the parent has.
Without them, other processes take the file for unused as soon as the parent has closed it: the next one that closes it
removes the -wal file, and the next one that opens it starts the -shm file again.

Locks belong to the process and the file, whichever descriptor was used, and end when any descriptor of the file is
closed. So the descriptors here remain open.
"""

import os
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

_IN_WAL_MODE = b"\x02\x02"
"""Bytes 18 and 19 of a database: https://sqlite.org/fileformat2.html#the_database_header"""

_SHARED_LOCK = (510, 0x40000002)
"""Number of bytes and first byte of the lock of each connection: `SHARED_SIZE`, `SHARED_FIRST` in os.h of SQLite."""

_SHM_IN_USE = (1, 128)
"""The lock of each process that has the -shm file open: `UNIX_SHM_DMS` in os_unix.c of SQLite."""


def acquire_locks_of_parent(path: str) -> None:
    """Acquires the locks that SQLite already counts as held: one of the database and one of its -shm file.

    To be called in the child right after the fork. Without WAL mode a connection has no lock between transactions, and
    one here would keep every process from writing.
    """
    real_path = os.path.realpath(path)
    with suppress(OSError):  # it was deleted, and is checked before it is used
        database = os.open(real_path, os.O_RDONLY | os.O_CLOEXEC)
        if os.pread(database, 2, 18) == _IN_WAL_MODE:
            fcntl.lockf(database, fcntl.LOCK_SH | fcntl.LOCK_NB, *_SHARED_LOCK)
            shared_memory = os.open(f"{real_path}-shm", os.O_RDONLY | os.O_CLOEXEC)
            fcntl.lockf(shared_memory, fcntl.LOCK_SH | fcntl.LOCK_NB, *_SHM_IN_USE)
