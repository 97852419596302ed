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
_HEADER = struct.Struct(">I 4x I 4x 8s I I")
"""Magic number; size of a page; salt; checksum."""

_BIG_ENDIAN = 0x377F0683
"""The magic number of a log whose checksums are computed from big-endian numbers."""

_FRAME_HEADER = struct.Struct(">I I 8s I I")
"""Number of a page; size of the database in pages if the frame ends a transaction, otherwise 0; salt; checksum."""


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
        if _fits(real_path, with_checksums=False) or _fits(real_path, with_checksums=True):
            return
        raise StoreUnavailable(
            f"{database}: the -wal file beside it belongs to another state of the database: if a backup was put there, "
            "move the database, its -wal and its -shm file away, and put the backup there again"
        )


def _fits(path: str, *, with_checksums: bool) -> bool:
    with open(f"{path}-wal", "rb") as log:  # noqa: PTH123
        page_bytes, pages_after, logged = _read(log, with_checksums=with_checksums)
    pages_in_file = os.path.getsize(path) // page_bytes if page_bytes else 0  # noqa: PTH202
    return all(page in logged for page in range(pages_in_file + 1, pages_after + 1))


def _read(log: BinaryIO, *, with_checksums: bool) -> tuple[int, int, set[int]]:
    """Returns the size of a page, the pages of the database after the last commit, and those that the log has.

    Args:
        with_checksums: End where SQLite would. A process that was killed between the last write of a commit and its end
            leaves frames that others overwrite only in part; the rest has the same salt. Checksums take much longer
            than the rest, so they are only computed if pages seem to be missing.
    """
    logged: set[int] = set()
    pages_after = 0
    header = log.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return 0, 0, logged
    magic, page_bytes, salt, *checksum = _HEADER.unpack(header)
    numbers = struct.Struct(f"{'>' if magic == _BIG_ENDIAN else '<'}{(8 + page_bytes) // 4}I")
    uncommitted: set[int] = set()
    while len(frame := log.read(_FRAME_HEADER.size)) == _FRAME_HEADER.size:
        page, committed, frame_salt, *expected = _FRAME_HEADER.unpack(frame)
        if frame_salt != salt:  # left from before SQLite began at the front again
            break
        if with_checksums:
            covered = frame[:8] + log.read(page_bytes)
            if len(covered) < numbers.size:
                break
            checksum = _continued(checksum, numbers.unpack(covered))
            if checksum != expected:
                break
        else:
            log.seek(page_bytes, os.SEEK_CUR)
        uncommitted.add(page)
        if committed:
            pages_after = committed
            logged |= uncommitted
            uncommitted.clear()
    return page_bytes, pages_after, logged


def _continued(checksum: list[int], numbers: tuple[int, ...]) -> list[int]:
    """Returns the checksum of a log with one more frame."""
    first, second = checksum
    for even, odd in zip(numbers[::2], numbers[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return [first, second]
