"""Notices a -wal file that does not fit its database, before SQLite applies it.

A process that crashed leaves a -wal file. If the main file is then replaced by a backup, SQLite applies the changes of
one state to another, and the connection that is closed last writes the result into the backup.
"""

import os
import struct
from contextlib import suppress
from typing import BinaryIO

from peon.persistence.errors import StoreUnavailable

# https://sqlite.org/fileformat2.html#the_write_ahead_log
_HEADER = struct.Struct(">8x I 4x 8s 8x")
"""Size of a page; salt."""

_FRAME_HEADER = struct.Struct(">I I 8s 8x")
"""Number of a page; size of the database in pages if the frame ends a transaction, otherwise 0; salt."""


def require_fitting_log(database: str, path: str) -> None:
    """Checks that each page of a database is in its file or in the -wal file beside it.

    Other processes may use the database meanwhile. The size of the file is therefore read last: it then counts what
    they have moved from the -wal file into it.

    Args:
        database: The name of the database in errors.
        path: The database, which this process does not use yet.

    Raises:
        StoreUnavailable: Pages are missing.
    """
    real_path = os.path.realpath(path)
    with suppress(OSError):  # there is no -wal file, or SQLite will explain why it cannot be read
        with open(f"{real_path}-wal", "rb") as log:  # noqa: PTH123
            page_bytes, pages_after, logged = _read(log)
        pages_in_file = os.path.getsize(real_path) // page_bytes if page_bytes else 0  # noqa: PTH202
        if all(page in logged for page in range(pages_in_file + 1, pages_after + 1)):
            return
        raise StoreUnavailable(
            f"{database}: the -wal file beside it belongs to another state of the database: if a backup was put there, "
            "move the database, its -wal and its -shm file away, and put the backup there again"
        )


def _read(log: BinaryIO) -> tuple[int, int, set[int]]:
    """Returns the size of a page, the pages of the database after the last commit, and those that the log has."""
    logged: set[int] = set()
    pages_after = 0
    header = log.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return 0, 0, logged
    page_bytes, salt = _HEADER.unpack(header)
    uncommitted: set[int] = set()
    while len(frame := log.read(_FRAME_HEADER.size)) == _FRAME_HEADER.size:
        page, committed, frame_salt = _FRAME_HEADER.unpack(frame)
        if frame_salt != salt:  # left from before SQLite began at the front again
            break
        uncommitted.add(page)
        if committed:
            pages_after = committed
            logged |= uncommitted
            uncommitted.clear()
        log.seek(page_bytes, os.SEEK_CUR)
    return page_bytes, pages_after, logged
