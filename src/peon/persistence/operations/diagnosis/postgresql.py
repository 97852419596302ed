"""Checks that only PostgreSQL needs."""

from typing import Any

from sqlalchemy import table

from peon.persistence.operations.diagnosis.findings import Findings, failure, warning
from peon.persistence.operations.diagnosis.subject import Subject

SAFE_SETTINGS = {
    "fsync": ("on", "a power failure may destroy the database"),
    "full_page_writes": ("on", "a power failure may leave half-written pages"),
    "zero_damaged_pages": ("off", "damaged pages are emptied without an error"),
}
"""The value that each setting must have, and what happens otherwise."""

DURABLE_COMMITS = ("on", "local", "remote_write", "remote_apply")
"""Values of `synchronous_commit` with which a commit is on the server's disk before it is acknowledged."""

MINIMUM_IDLE_MS = 60_000
"""A rebuild computes between two statements of its transaction."""

TIMEOUTS = {
    "statement_timeout": (0, "ends long statements of rebuilds, migrations and checks"),
    "transaction_timeout": (0, "ends rebuilds and migrations, each of which is one transaction"),
    "idle_in_transaction_session_timeout": (MINIMUM_IDLE_MS, "ends a rebuild that computes between two statements"),
    "idle_session_timeout": (
        0,
        "ends connections of subscriptions that wait for events, and those that wait in a pool",
    ),
}
"""The least value in milliseconds that does no harm, 0 if all do; 0 as a setting is no timeout."""


def settings(subject: Subject) -> Findings:
    """The server keeps what it has acknowledged, also through a power failure."""
    with subject.reading() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', "
            "'zero_damaged_pages', 'synchronous_commit', 'synchronous_standby_names')"
        )
        found: dict[str, str] = {row[0]: row[1] for row in rows}
    for name, (safe, harm) in SAFE_SETTINGS.items():
        if found.get(name, safe) != safe:
            yield failure(
                f"{name} is {found[name]}: {harm}", f"set  {name} = {safe}  in postgresql.conf, and restart the server"
            )
    commit = found["synchronous_commit"]
    fix = "run  ALTER DATABASE … SET synchronous_commit = on  and open connections again"
    if commit not in DURABLE_COMMITS:
        yield failure(f"synchronous_commit is {commit}: a crash of the server may lose acknowledged events", fix)
    elif found.get("synchronous_standby_names") and commit in ("local", "remote_write"):
        yield warning(f"synchronous_commit is {commit}: a failover may lose acknowledged events", fix)
    return "commits are durable"


def timeouts(subject: Subject) -> Findings:
    """No timeout of the server ends what Peon does."""
    with subject.reading() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, CAST(setting AS bigint) FROM pg_settings WHERE name = ANY (%(names)s)",
            {"names": list(TIMEOUTS)},
        )
        found: dict[str, int] = {row[0]: row[1] for row in rows}
    for name, milliseconds in found.items():
        least, harm = TIMEOUTS[name]
        if milliseconds and (not least or milliseconds < least):
            yield warning(
                f"{name} is {milliseconds / 1000:g} s: it {harm}",
                f"run  ALTER ROLE … SET {name} = 0  for the role of the applications",
            )
    return "none that does harm"


def encoding(subject: Subject) -> Findings:
    """The database stores text as UTF-8."""
    with subject.reading() as connection:
        found = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if found != "UTF8":
        yield failure(
            f"text is stored as {found}", "copy the events to a database that was created with ENCODING 'UTF8'"
        )
    return "UTF-8"


def pooler(subject: Subject) -> Findings:
    """The session of the server lasts as long as the connection: a pooler in transaction mode breaks locks."""
    told, used = sessions(subject)
    if len(used) > 1:
        yield failure(
            "transactions of one connection run in several sessions of the server: a pooler is in transaction mode, "
            "and consumers of durable subscriptions do not exclude one another",
            "set the pooler to session mode, or connect to the server itself",
        )
    elif {told} != used:
        yield warning(
            "a pooler is between this machine and the server; in transaction mode, consumers of durable subscriptions "
            "would not exclude one another",
            "see to it that the pooler is in session mode",
        )
    return "none"


def sessions(subject: Subject) -> tuple[int, set[int]]:
    """Returns the session that the server named when it was connected to, and those that transactions have run in."""
    used: set[int] = set()
    with subject.database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        for _ in range(3):
            used.add(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            connection.rollback()
        return driver.info.backend_pid, used


def integrity(subject: Subject) -> Findings:
    """All rows can be read, and no index is invalid. The server has no check of all pages that every role may use."""
    with subject.reading() as connection:
        schema = subject.backend.schema_for_new_tables(connection)
        invalid = connection.exec_driver_sql(
            "SELECT CAST(indexrelid AS regclass) FROM pg_index JOIN pg_class ON pg_class.oid = indrelid "
            "WHERE relnamespace = CAST(current_schema() AS regnamespace) AND NOT (indisvalid AND indisready)"
        ).scalars()
        for index in invalid.all():
            yield failure(f"the index {index} is invalid", f"run  REINDEX INDEX {index}")
        for number, name in enumerate(sorted(subject.tables)):
            subject.report(number, len(subject.tables))
            if not subject.backend.is_readable(connection, table(name, schema=schema)):  # type: ignore[arg-type]
                yield failure(f"rows of the table {name} cannot be read", "restore a backup")
    return "no damage found"


def disabled_triggers(subject: Subject) -> Findings:
    """The triggers of the log are enabled."""
    with subject.reading() as connection:
        names = connection.exec_driver_sql(
            "SELECT CAST(tgname AS text) FROM pg_trigger WHERE tgrelid = to_regclass('events') "
            "AND NOT tgisinternal AND tgenabled NOT IN ('O', 'A') ORDER BY 1"
        ).scalars()
        for name in names.all():
            yield failure(f"the trigger {name} is disabled", f"run  ALTER TABLE events ENABLE TRIGGER {name}")
    return "enabled"
