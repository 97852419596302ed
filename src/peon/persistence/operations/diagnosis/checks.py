"""Runs all checks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from peon.persistence.database import Database
from peon.persistence.errors import PersistenceError
from peon.persistence.operations.diagnosis import derived, files, log, postgresql, schema, sqlite
from peon.persistence.operations.diagnosis.findings import Finding, Findings, Outcome, not_checked
from peon.persistence.operations.diagnosis.subject import Subject
from peon.persistence.projections import Progress
from peon.persistence.schema import (
    command_receipts,
    event_tags,
    events,
    log_identity,
    projection_positions,
    projection_problems,
    subscription_positions,
    tag_positions,
    tags,
)

BOTH = ("sqlite", "postgresql")
SQLITE = ("sqlite",)
POSTGRESQL = ("postgresql",)


class Check(NamedTuple):
    """One check.

    Attributes:
        name: What is checked, as the command shows it.
        examine: The check; the first line of its docstring says what holds if nothing is wrong.
        backends: The database systems that have it.
        tables: The tables that it needs; without one of them, it is not done.
        is_deep: Whether it is only done if everything is to be compared with the log.
        from_outside: Whether it works if the database cannot be opened.
    """

    name: str
    examine: Callable[[Subject], Findings]
    backends: tuple[str, ...] = BOTH
    tables: tuple[str, ...] = ()
    is_deep: bool = False
    from_outside: bool = False


def opening(subject: Subject) -> Findings:
    """The database can be opened and read."""
    with subject.reading() as connection:
        version = subject.backend.version(connection)
    _ = subject.tables
    yield from ()
    return f"{subject.backend.name} {version}"


OPENING = Check("opening", opening)

CHECKS = (
    Check("permissions", files.permissions, SQLITE, from_outside=True),
    Check("file system", files.file_system, SQLITE, from_outside=True),
    Check("free space", files.free_space, SQLITE, from_outside=True),
    Check("-wal file", files.write_ahead_log, SQLITE, from_outside=True),
    Check("SQLite version", sqlite.version, SQLITE, from_outside=True),
    OPENING,
    Check("journal mode", sqlite.journal_mode, SQLITE),
    Check("durability", postgresql.settings, POSTGRESQL),
    Check("timeouts", postgresql.timeouts, POSTGRESQL),
    Check("encoding", postgresql.encoding, POSTGRESQL),
    Check("pooler", postgresql.pooler, POSTGRESQL),
    Check("integrity", sqlite.integrity, SQLITE),
    Check("integrity", postgresql.integrity, POSTGRESQL),
    Check("revision", schema.revision),
    Check("schema", schema.tables),
    Check("append-only", schema.append_only, tables=(events.name,)),
    Check("disabled triggers", postgresql.disabled_triggers, POSTGRESQL, (events.name,)),
    Check("log identity", schema.identity, tables=(log_identity.name,)),
    Check("foreign keys", schema.foreign_keys),
    Check("column types", sqlite.values, SQLITE, (events.name,)),
    Check("sequences", log.sequences, tables=(events.name,)),
    Check("range of sequences", log.sequence_range, tables=(events.name,)),
    Check("clock", log.times, tables=(events.name,)),
    Check("decoding", log.undecodable, tables=(events.name,)),
    Check("tag index", derived.tag_index, tables=(events.name, tags.name, event_tags.name, tag_positions.name)),
    Check("commands", derived.command_receipts_in_log, tables=(events.name, command_receipts.name)),
    Check("subscriptions", derived.subscriptions, tables=(events.name, subscription_positions.name)),
    Check(
        "projections",
        derived.projection_state,
        tables=(events.name, projection_positions.name, projection_problems.name),
    ),
    Check("tables of a rebuild", derived.side_tables, SQLITE),
    Check("projected rows", derived.projection_rows, tables=(events.name, projection_positions.name), is_deep=True),
)
"""All checks, in the order in which they are done."""


class Diagnosed(NamedTuple):
    """A finding, and the name of the check that has made it."""

    check: str
    finding: Finding


@contextmanager
def _silently(_name: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def diagnose(
    database: Database,
    *,
    deep: bool = False,
    checks: Sequence[Check] = CHECKS,
    options: str = "",
    progress: Callable[[str], AbstractContextManager[Progress]] = _silently,
) -> Iterator[Diagnosed]:
    """Examines a database, and yields what each check has found; changes nothing.

    Args:
        database: See `opened_for_reading`, with temporary tables if `deep`.
        deep: Also compute the projections from the log again, and compare them.
        checks: Which checks are done.
        options: The options of the command `peon` that name the database, for the commands in advice.
        progress: Called with the name of each check while it is done. See `Progress`.
    """
    subject = Subject(database, options)
    is_open = True
    for check in checks:
        if subject.backend.name not in check.backends or (check.is_deep and not deep):
            continue
        if not is_open and not check.from_outside:
            yield Diagnosed(check.name, not_checked("the database cannot be opened"))
            continue
        with progress(check.name) as subject.report:
            found = _findings(check, subject)
        if check is OPENING:
            is_open = all(each.outcome is not Outcome.FAILURE for each in found)
        yield from (Diagnosed(check.name, each) for each in found)


def _findings(check: Check, subject: Subject) -> list[Finding]:
    """Returns what is wrong; if nothing is, one finding that says so."""
    found: list[Finding] = []
    try:
        missing = [name for name in check.tables if name not in subject.tables]
        if missing:
            return [not_checked(f"there is no table {missing[0]}")]
        summary = _collected(check.examine(subject), found)
    except (PersistenceError, OSError) as error:
        return [*found, Finding(Outcome.FAILURE, str(error))]
    return found or [Finding(Outcome.OK, summary)]


def _collected(findings: Findings, found: list[Finding]) -> str:
    while True:
        try:
            found.append(next(findings))
        except StopIteration as end:
            return str(end.value)
