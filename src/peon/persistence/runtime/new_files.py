"""Files that appear at their path only when they are complete, and that only their owner can read."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peon.persistence.errors import PersistenceError


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty private file, which gets the name `path` when the block ends without an error.

    Otherwise it is removed. The file has reached the disk when it gets its name.

    Args:
        replace: Replace a file that exists.

    Raises:
        PersistenceError: The file exists, or cannot be written.
    """
    with file_errors(path):
        _refuse_existing(path, replace)
        with private_file_beside(path) as partial:
            yield partial
            sync(partial)
            _refuse_existing(path, replace)
            partial.replace(path)
            sync_folder(path)


@contextmanager
def private_file_beside(path: Path) -> Iterator[Path]:
    """Yields an empty private file in the same folder, and removes it at the end if it still has its name."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield partial
    finally:
        with suppress(OSError):  # of a disk that fails; the error that is raised tells more
            partial.unlink(missing_ok=True)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Converts what the operating system raises inside into `PersistenceError`, which names the file."""
    try:
        yield
    except OSError as error:
        raise PersistenceError(
            f"{error.filename or path}: {error.strerror or error}: name a file that this user may use, on a disk with "
            "free space"
        ) from error


def sync(path: Path) -> None:
    """Returns when the file has reached the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Returns when the names in the file's folder have reached the disk."""
    if sys.platform == "win32":  # it opens no folders
        return
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_existing(path: Path, replace: bool) -> None:
    if path.is_dir():
        raise PersistenceError(f"{path} is a folder: name a file in it")
    if not replace and path.exists():
        raise PersistenceError(f"{path} exists: name another file, or allow that it is replaced")
