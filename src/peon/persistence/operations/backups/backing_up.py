"""Makes a backup, and checks it before it gets its name."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from peon.persistence.backends.address import require_existing
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import PersistenceError
from peon.persistence.operations.backups import postgresql_programs, sqlite_files
from peon.persistence.operations.backups.contents import Contents, events_up_to
from peon.persistence.runtime.compression import (
    COPIED_BYTES,
    Compression,
    compressing,
    compression_of,
    decompressing,
)
from peon.persistence.runtime.counts import counted
from peon.persistence.runtime.new_files import new_file, private_file_beside

Bytes = Callable[[int, int], None]
"""Takes the number of bytes done, and the number of bytes to do in all."""

TIME_IN_NAME = "%Y%m%dT%H%M%SZ"


class BackupReport(NamedTuple):
    """The backup that `back_up_database` has made.

    Attributes:
        file: Its path.
        events: The number of events in it.
        last_sequence: The sequence of its last event, 0 for an empty log.
        revision: The revision of its tables.
        removed: Older backups that were removed.
    """

    file: Path
    events: int
    last_sequence: int
    revision: str | None
    removed: tuple[Path, ...]


def back_up_database(
    engine: Engine, file: Path, *, replace: bool = False, keep: int | None = None, progress: Bytes | None = None
) -> BackupReport:
    """Writes one committed state of a database to a file, while applications continue to run, and checks the file.

    An SQLite database becomes an SQLite file without free pages, and without traces of what was deleted. If the name
    ends with `.gz` or `.zst`, the file is compressed. On PostgreSQL, `pg_dump` must be installed: it writes the schema
    that holds the log in its custom format, which is compressed.

    The backup is read again as a whole, and the number of its events is compared with the log. Then it gets its name.
    Only its owner can read it.

    Args:
        engine: Of a database at any revision.
        replace: Replace a file that exists.
        keep: Add the time to the name, as in `peon-20260314T120000Z.db`, and remove all but this many of the backups
            that are named so.
        progress: Called with the number of bytes that were written, and the number to write. It is not called on
            PostgreSQL.

    Raises:
        StoreUnavailable: The database is locked, damaged or not reachable.
        PersistenceError: The file exists or cannot be written; the database has no log; the backup is not complete;
            `pg_dump` or `pg_restore` is not installed, or has failed.
        ValueError: `keep` is less than 1.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}: keep at least 1 backup")
    require_existing(engine.url)
    target = file if keep is None else _with_time(file)
    # Of all that differs between the databases, a backup is the only thing that an application does not need.
    write = _write_sqlite if engine.dialect.name == "sqlite" else _write_postgresql
    with new_file(target, replace=replace) as partial:
        contents = write(engine, partial, compression_of(file), progress or _ignore)
        with DriverErrors(engine, expects_tables=True):
            expected = events_up_to(engine, contents.last_sequence)
        if expected != contents.events:
            raise PersistenceError(
                f"{database_name(engine)} holds {counted(expected, 'event')} up to {contents.last_sequence:,}, but the "
                f"backup has {contents.events:,}: was an event removed meanwhile? Make another backup"
            )
    removed = () if keep is None else _remove_all_but(keep, file)
    return BackupReport(target, contents.events, contents.last_sequence, contents.revision, removed)


def _write_sqlite(engine: Engine, partial: Path, compression: Compression | None, progress: Bytes) -> Contents:
    if compression is None:
        return _copy_sqlite(engine, partial, progress)
    with private_file_beside(partial) as copy:
        contents = _copy_sqlite(engine, copy, lambda done, total: progress(done, 2 * total))
        _compress(copy, partial, compression, progress)
    return contents


def _copy_sqlite(engine: Engine, copy: Path, progress: Bytes) -> Contents:
    with DriverErrors(engine, expects_tables=True), engine.connect() as connection:
        sqlite_files.write_copy(connection, copy, progress)
    return sqlite_files.checked_contents(copy, f"the backup of {database_name(engine)}", version_table_of(engine))


def _compress(copy: Path, partial: Path, compression: Compression, progress: Bytes) -> None:
    """Compresses a file, and checks that it decompresses to the same bytes."""
    size = copy.stat().st_size
    written, read = sha256(), sha256()
    with copy.open("rb") as source, partial.open("wb") as raw, compressing(raw, compression) as stream:
        while piece := source.read(COPIED_BYTES):
            written.update(piece)
            stream.write(piece)
            progress(size + source.tell(), 2 * size)
    with partial.open("rb") as compressed, decompressing(compressed, str(partial)) as decompressed:
        while piece := decompressed.read(COPIED_BYTES):
            read.update(piece)
    if read.digest() != written.digest():
        raise PersistenceError(f"{partial} could not be read back as it was written: check the disk, and back up again")


def _write_postgresql(engine: Engine, partial: Path, compression: Compression | None, _: Bytes) -> Contents:
    if compression is not None:
        raise PersistenceError("pg_dump compresses a backup itself: leave the ending .gz or .zst out of its name")
    programs = postgresql_programs.Programs(engine)
    programs.dump(partial)
    return programs.contents_of_dump(partial).contents


def _with_time(file: Path) -> Path:
    stem, suffixes = _parts(file)
    return file.with_name(f"{stem}-{datetime.now(UTC).strftime(TIME_IN_NAME)}{suffixes}")


def _remove_all_but(keep: int, file: Path) -> tuple[Path, ...]:
    stem, suffixes = _parts(file)
    name = re.compile(rf"{re.escape(stem)}-\d{{8}}T\d{{6}}Z{re.escape(suffixes)}")
    backups = sorted(path for path in file.parent.iterdir() if name.fullmatch(path.name))
    removed = tuple(backups[:-keep])
    for path in removed:
        path.unlink()
    return removed


def _parts(file: Path) -> tuple[str, str]:
    compression = file.suffix if compression_of(file) else ""
    name = Path(file.name.removesuffix(compression))
    return name.stem, name.suffix + compression


def _ignore(_: int, __: int) -> None:
    pass
