"""Checks of an SQLite file from outside: they read none of its content."""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from peon.persistence.backends.sqlite_connections import WAL_SIZE_LIMIT_BYTES
from peon.persistence.backends.sqlite_file_locks import file_system_of
from peon.persistence.operations.diagnosis.findings import Finding, Findings, failure, not_checked, warning
from peon.persistence.operations.diagnosis.subject import Subject

MEGABYTE = 1_000_000

MINIMUM_FREE_BYTES = 100 * MEGABYTE
"""Below this, the next long transaction may fail: the -wal file alone may need 64 MB."""

NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs")
)
"""As the system names them. Their locks and their shared memory do not work between machines as SQLite needs them."""

NETWORK_FILE_SYSTEMS_OF_USERS = ("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.ceph", "fuse.davfs")

NO_FILE = "the database is not a file that the address names"


def permissions(subject: Subject) -> Findings:
    """Only the owner can read and change the file and those beside it; nobody else can replace them."""
    file = subject.file
    if file is None or sys.platform == "win32":
        yield not_checked(NO_FILE if file is None else "this system has other permissions")
        return ""
    owner = file.stat().st_uid
    yield from _permissions_of_folder(file.parent)
    for path in _files_of(file):
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        fix = f"run  chmod 600 {path}"
        if mode & stat.S_IWOTH:
            yield failure(f"every user can change {path} (mode {mode:o})", fix)
        elif mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield warning(f"other users can read or change {path} (mode {mode:o})", fix)
        if status.st_uid != owner:
            yield failure(f"{path} belongs to another user than the database", f"run  chown --reference={file} {path}")
        if not os.access(path, os.R_OK):
            yield failure(f"this user cannot read {path}", "run peon as the owner of the file")
        elif not os.access(path, os.W_OK):
            yield warning(f"this user can only read {path}", f"run applications as its owner, or run  chmod u+w {path}")
    return "private to the owner"


def _permissions_of_folder(folder: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IWOTH:
        yield failure(f"every user can replace the files in {folder} (mode {mode:o})", f"run  chmod 700 {folder}")
    elif mode & stat.S_IWGRP:
        yield warning(f"a group can replace the files in {folder} (mode {mode:o})", f"run  chmod 700 {folder}")
    if not os.access(folder, os.W_OK):
        yield warning(
            f"this user cannot create files in {folder}, as SQLite does beside the database",
            f"run applications as its owner, or run  chmod u+w {folder}",
        )


def _files_of(file: Path) -> list[Path]:
    """Returns the database and the files that SQLite has beside it."""
    real = Path(os.path.realpath(file))
    beside = (real.with_name(real.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    return [file, *(path for path in beside if path.exists())]


def free_space(subject: Subject) -> Findings:
    """The disk has room for a copy of the database, as a migration, a backup and VACUUM make one."""
    if subject.file is None:
        yield not_checked(NO_FILE)
        return ""
    free = shutil.disk_usage(subject.file.parent).free
    size = subject.file.stat().st_size
    found = f"{free / MEGABYTE:,.0f} MB are free for a database of {size / MEGABYTE:,.0f} MB"
    if free < MINIMUM_FREE_BYTES:
        yield failure(found, f"free some space on the disk of {subject.file.parent}")
    elif free < size + MINIMUM_FREE_BYTES:
        yield warning(f"{found}, so a copy of it has no room", f"free some space on the disk of {subject.file.parent}")
    return found


def file_system(subject: Subject) -> Findings:
    """The file is on a local disk. SQLite's locks do not work on a network file system."""
    found = None if subject.file is None else file_system_of(subject.file)
    if found is None:
        yield not_checked(NO_FILE if subject.file is None else "this system does not tell")
        return ""
    kind = found.partition(" ")[0]
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith(NETWORK_FILE_SYSTEMS_OF_USERS):
        yield failure(
            f"the file is on a network file system, {found}", "move the database to a local disk, or use PostgreSQL"
        )
    return found


def write_ahead_log(subject: Subject) -> Findings:
    """The -wal file is not above the size to which SQLite cuts it back."""
    if subject.file is None:
        yield not_checked(NO_FILE)
        return ""
    log = Path(f"{os.path.realpath(subject.file)}-wal")
    size = log.stat().st_size if log.exists() else 0
    found = f"the -wal file has {size / MEGABYTE:,.0f} MB"
    if size > WAL_SIZE_LIMIT_BYTES:
        yield warning(
            f"{found}, above its limit of {WAL_SIZE_LIMIT_BYTES / MEGABYTE:,.0f} MB: a transaction was open for long",
            f"end such transactions, then run  {subject.sqlite3('PRAGMA wal_checkpoint(TRUNCATE)')}",
        )
    return found
