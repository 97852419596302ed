"""What an SQLite file is made of, and which processes have it open."""

import os
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from peon.persistence.backends.sizes import SizeOfPart, Storage

_PAGES = (
    "SELECT (SELECT page_size FROM pragma_page_size), (SELECT page_count FROM pragma_page_count), "
    "(SELECT freelist_count FROM pragma_freelist_count)"
)

_PARTS = (
    "SELECT part.name, coalesce(known.tbl_name, part.name), part.pgsize "
    "FROM dbstat AS part LEFT JOIN sqlite_master AS known ON known.name = part.name "
    "WHERE part.aggregate = TRUE"
)


def storage_of(connection: Connection, file: Path | None) -> Storage:
    page_bytes, pages, free_pages = connection.exec_driver_sql(_PAGES).one()
    log: int | None = None
    if file is not None:
        log = 0
        with suppress(OSError):
            log = Path(f"{os.path.realpath(file)}-wal").stat().st_size
    return Storage(pages * page_bytes, log, free_pages * page_bytes)


def sizes_of_parts(connection: Connection) -> list[SizeOfPart] | None:
    try:
        return [SizeOfPart(*row) for row in connection.exec_driver_sql(_PARTS)]
    except OperationalError:
        return None  # this SQLite was compiled without dbstat


def processes_with(file: Path) -> list[str] | None:
    """Returns the other processes that have a file open; `None` if the system does not tell."""
    processes = Path("/proc")  # of Linux
    if not (processes / "self" / "fd").is_dir():
        return None
    wanted = file.stat()
    found = []
    for process in processes.iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            with suppress(OSError):  # it has ended, or belongs to another user
                if any(_is_same(each, wanted) for each in (process / "fd").iterdir()):
                    found.append(f"process {process.name} ({(process / 'comm').read_text().strip()})")
    return sorted(found)


def _is_same(descriptor: Path, wanted: os.stat_result) -> bool:
    try:
        found = descriptor.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
