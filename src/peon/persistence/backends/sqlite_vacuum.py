"""Gives the free pages of an SQLite file back to the file system."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.sizes import Space
from peon.persistence.errors import StoreUnavailable
from peon.persistence.runtime.event_loop import pause

STEP_PAGES = 500
"""Pages that one transaction gives back. Appends wait for it, for a few milliseconds."""

REST_SECONDS = 0.002
"""Between two steps, so that waiting appends go first."""

INCREMENTAL = 2
"""The value of `PRAGMA auto_vacuum` for a file whose pages can be moved in steps."""


def space_of(engine: Engine) -> Space:
    with engine.execution_options(**{READ_ONLY: True}).connect() as connection:
        return _space(connection)


def give_back_space(engine: Engine, report: Callable[[int, int], None], *, full: bool) -> None:
    # VACUUM and the checkpoint need a connection without a transaction.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if full:
            _write_again(connection)
            report(1, 1)
        else:
            _give_back_in_steps(connection, report)


def erase_deleted_content(engine: Engine, *, vacuum: bool) -> str | None:
    left: list[str] = []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.exec_driver_sql("PRAGMA database_list").all()[0][2]:
            return None  # in memory
        if vacuum:
            try:
                _write_again(connection)  # pages keep parts of what was deleted before, without secure_delete
            except StoreUnavailable as error:
                left.append(str(error))
        else:
            left.append("free pages may keep what was deleted earlier, until a full vacuum (peon vacuum --full)")
        if not _checkpoint(connection, "TRUNCATE"):
            left.append("the -wal file keeps the old pages, because a reader needs it: it is emptied at the next start")
    return "; ".join(left) or None


def _space(connection: Connection) -> Space:
    page_bytes, pages, free_pages = (
        _number(connection, name) for name in ("page_size", "page_count", "freelist_count")
    )
    file = str(connection.exec_driver_sql("PRAGMA database_list").all()[0][2])
    available = shutil.disk_usage(Path(file).parent).free if file else None
    can_shrink = _number(connection, "auto_vacuum") == INCREMENTAL
    return Space(pages * page_bytes, free_pages * page_bytes, can_shrink, available)


def _write_again(connection: Connection) -> None:
    space = _space(connection)
    needed = 2 * (space.total - space.free)  # a temporary file, and the -wal file
    if space.available is not None and space.available < needed:
        raise StoreUnavailable(
            f"{database_name(connection.engine)}: a full vacuum needs {needed:,} bytes, and the disk has "
            f"{space.available:,}: free some, or vacuum without full"
        )
    connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
    connection.exec_driver_sql("VACUUM")
    _checkpoint(connection, "TRUNCATE")


def _give_back_in_steps(connection: Connection, report: Callable[[int, int], None]) -> None:
    if _number(connection, "auto_vacuum") != INCREMENTAL:
        return
    before = _number(connection, "freelist_count")
    left = before
    while left:
        # As a script: the statement gives back a page at each step, and has no columns, so nobody fetches its rows.
        _run_script(connection, f"PRAGMA incremental_vacuum({STEP_PAGES})")
        after = _number(connection, "freelist_count")
        if after >= left:  # others free pages faster, or have given them back
            break
        left = after
        report(max(before - left, 0), before)
        _checkpoint(connection, "PASSIVE")
        pause(REST_SECONDS, connection.dialect)
    _checkpoint(connection, "PASSIVE")


def _checkpoint(connection: Connection, kind: str) -> bool:
    """Writes the -wal file to the file, which then gets its new size.

    Returns:
        Whether all of it was done. Readers may have been in the way.
    """
    (busy, *_), *_ = connection.exec_driver_sql(f"PRAGMA wal_checkpoint({kind})").all()
    return not busy


def _number(connection: Connection, name: str) -> int:
    number: int = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
    return number


def _run_script(connection: Connection, script: str) -> None:
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.is_async:
        driver.run_async(lambda asynchronous: asynchronous.executescript(script))
    else:
        driver.executescript(script)
