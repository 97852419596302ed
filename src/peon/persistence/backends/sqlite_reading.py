"""How to open an SQLite file so that reading it leaves no trace."""

import os
from pathlib import Path


def mode_for_reading(path: Path) -> str:
    """Returns the parameters of an SQLite URI with which the file is opened to read it.

    A connection with `mode=ro` never writes to the database, but it creates the -wal and -shm files and cannot remove
    them. A connection with `mode=rw` removes them, but it also moves what is in the -wal file into the database when
    it is the last one to close. So the state of the files decides.
    """
    real_path = Path(os.path.realpath(path))
    log, shared = (real_path.with_name(real_path.name + suffix) for suffix in ("-wal", "-shm"))
    if _size(log) > 0:
        return "mode=ro"  # the changes in it stay where they are
    if os.access(real_path, os.W_OK) and os.access(real_path.parent, os.W_OK):
        return "mode=rw"
    if log.exists() or shared.exists():
        return "mode=ro"
    # The files cannot be created, or would belong to another user than the database, which that user could then no
    # longer open. No process has the file open in WAL mode now. One that opens it meanwhile changes the file itself
    # only at a checkpoint.
    return "mode=ro&immutable=1"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
