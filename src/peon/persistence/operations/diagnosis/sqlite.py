"""Checks that only SQLite needs."""

import re
import sqlite3

from peon.persistence.operations.diagnosis.findings import Findings, failure, warning
from peon.persistence.operations.diagnosis.subject import Subject
from peon.persistence.runtime.counts import counted

MESSAGES = 20
"""Messages of `integrity_check` that are asked for; one damaged page may cause thousands."""

SHOWN_MESSAGES = 3

WAL_RESET_DEFECT = ((3, 7, 0), (3, 51, 3))
"""The first version with the defect, and the first without it: https://sqlite.org/wal.html#walresetbug"""

WAL_RESET_FIXED_ALSO_IN = ((3, 44, 6), (3, 50, 7))
"""Releases of older branches that have the fix, and so do later ones of the same branch."""

_OF_INDEX = re.compile(r"row \d+ missing from index |wrong # of entries in index |non-unique entry in index ")

RESTORE = (
    "restore a backup; without one, peon rebuild repairs the tables that are derived from the log, and "
    "salvage_database() copies what can be read"
)


def version(_subject: Subject) -> Findings:
    """SQLite has no known defect that damages a file which several processes write."""
    found = sqlite3.sqlite_version_info
    first, fixed = WAL_RESET_DEFECT
    is_fixed = found >= fixed or any(found[:2] == each[:2] and found >= each for each in WAL_RESET_FIXED_ALSO_IN)
    if found >= first and not is_fixed:
        yield warning(
            f"SQLite {sqlite3.sqlite_version} may, rarely, damage a file in WAL mode when two connections "
            "write and make a checkpoint at the same moment",
            "use a Python with SQLite 3.51.3 or newer, and back up until then",
        )
    return f"SQLite {sqlite3.sqlite_version}"


def journal_mode(subject: Subject) -> Findings:
    """The file is in WAL mode, in which readers and the writer do not wait for one another."""
    with subject.reading() as connection:
        found = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if found != "wal":
        yield warning(
            f"the journal mode is {found}, so readers and the writer wait for one another",
            f"run  {subject.sqlite3('PRAGMA journal_mode = WAL')} , or let an application write",
        )
    return "WAL mode"


def integrity(subject: Subject) -> Findings:
    """All pages, rows and indexes are sound: SQLite's `integrity_check`."""
    with subject.reading() as connection:
        found = connection.exec_driver_sql(f"PRAGMA integrity_check({MESSAGES})").scalars().all()
    if found != ["ok"]:
        shown = "; ".join(" ".join(message.split()) for message in found[:SHOWN_MESSAGES])
        more = f"; and more ({len(found)} messages or more)" if len(found) > SHOWN_MESSAGES else ""
        is_index = all(_OF_INDEX.match(message) for message in found)
        advice = f"run  {subject.sqlite3('REINDEX')}" if is_index else RESTORE
        yield failure(f"the file is damaged: {shown}{more}", advice)
    return "no damage found"


def values(subject: Subject) -> Findings:
    """The columns of the log hold text, and nothing that a program has put there past Peon."""
    with subject.reading() as connection:
        count, first = connection.exec_driver_sql(
            "SELECT count(*), min(sequence) FROM events WHERE typeof(event_type) != 'text' "
            "OR typeof(payload) != 'text' OR typeof(stored_at) != 'text'"
        ).one()
    if count:
        yield failure(
            f"{counted(count, 'event holds', 'events hold')} something else than text, the first is {first}: another "
            "program has written that",
            "restore a backup",
        )
    return "only text"
