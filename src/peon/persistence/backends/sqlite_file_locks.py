"""Tells a file system that cannot lock files from a lock that another connection holds.

SQLite reports both as busy: https://sqlite.org/src/file?name=src/os_unix.c, `sqliteErrorFromPosixError`.
"""

import os
import re
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PATIENCE_SECONDS = 0.5
"""How long a connection waits for a lock before it checks whether the file system has locks; a check takes 0.1 ms."""

_FAILED_LOCKS = {
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMLOCK,
}


def is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def explain_failed_lock(error: sqlite3.Error, file: Path | None) -> str | None:
    """Returns what is wrong if a file system could not lock a file; `None` for any other error.

    Args:
        file: The database; `None` if its path is not known.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    is_certain = code in _FAILED_LOCKS or code & 0xFF == sqlite3.SQLITE_PROTOCOL
    if not is_certain and not is_busy(error):
        return None
    reason = reason_for_no_locks(file.parent) if file is not None else None
    if reason is None and not is_certain:
        return None
    where = file_system_of(file) if file is not None else None
    return (
        f"files cannot be locked on {where or 'its file system, perhaps a network file system'} "
        f"({reason or error}): move the database to a local disk, or use PostgreSQL"
    )


def reason_for_no_locks(folder: Path) -> str | None:
    """Returns why files in a folder cannot be locked; `None` if they can, or if that cannot be found out.

    It locks a file of its own: closing the database would end the locks that SQLite holds on it.
    """
    if sys.platform == "win32":
        return None
    probe = folder / f".peon-{os.getpid()}-{os.urandom(8).hex()}.lock"
    with suppress(OSError):
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            probe.unlink()
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror
        finally:
            os.close(descriptor)
    return None


def file_system_of(file: Path) -> str | None:
    """Returns the kind of a file's file system and where it is mounted; `None` where the system does not say."""
    found = None
    longest = -1
    with suppress(OSError):
        real = os.fsencode(file.resolve())
        # The system lists the mounts in their order: a later one at the same place hides the earlier one.
        for line in Path("/proc/self/mounts").read_bytes().splitlines():
            _, mount, kind, *_ = line.split(b" ")
            mount = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), mount)
            if len(mount) >= longest and (real == mount or real.startswith(mount.rstrip(b"/") + b"/")):
                longest = len(mount)
                found = f"{kind.decode(errors='replace')} at {mount.decode(errors='replace')}"
    return found
