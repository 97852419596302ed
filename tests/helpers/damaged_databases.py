"""Ways to damage a database, and what `peon doctor` must say about each of them."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import sqlalchemy
from helpers.damaged_files import damage_page, pages_of
from helpers.disabled_triggers import triggers_disabled
from helpers.migrated_databases import file_of, thaw
from sqlalchemy import URL, text

BOTH = ("file", "postgresql")
FILE = ("file",)
POSTGRESQL = ("postgresql",)


class Damage(NamedTuple):
    """A way to damage a database.

    Attributes:
        what: How it is damaged, for people.
        inflict: Damages the database at an address. Its log holds the scene, its tag index the threads.
        check: The check that notices it.
        outcome: What that check ends with.
        reason: A part of what it says.
        advice: A part of what it advises.
        where: The kinds of databases.
        is_deep: Whether only `--deep` notices it.
        is_open: Whether the database can still be opened.
    """

    what: str
    inflict: Callable[[URL], object]
    check: str
    outcome: str
    reason: str
    advice: str = ""
    where: tuple[str, ...] = BOTH
    is_deep: bool = False
    is_open: bool = True


def sql(*statements: str) -> Callable[[URL], None]:
    """Returns a function that executes the statements, past the triggers of the log."""

    def run(url: URL) -> None:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection, triggers_disabled(connection):
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    return run


def bare_sql(*statements: str) -> Callable[[URL], None]:
    """Returns a function that executes the statements. Foreign keys are not enforced."""

    def run(url: URL) -> None:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    return run


def replaced(content: bytes) -> Callable[[URL], object]:
    return lambda url: file_of(url).write_bytes(content)


def mode(of_file: int, of_folder: int) -> Callable[[URL], None]:
    def change(url: URL) -> None:
        file_of(url).chmod(of_file)
        file_of(url).parent.chmod(of_folder)

    return change


def _cut(url: URL) -> None:
    file = file_of(url)
    os.truncate(file, file.stat().st_size // 2)


def _zero_page(name: str) -> Callable[[URL], None]:
    def damage(url: URL) -> None:
        file = file_of(url)
        damage_page(file, pages_of(file, name)[-1])

    return damage


def _rollback_journal(url: URL) -> None:
    with closing(sqlite3.connect(file_of(url))) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _index_without_row(url: URL) -> None:
    """Removes an index while a row is written, and puts it back as it was."""
    with closing(sqlite3.connect(file_of(url), isolation_level=None)) as connection:
        definition = connection.execute(
            "SELECT rootpage, sql FROM sqlite_master WHERE name = 'idx_turns_thread'"
        ).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'idx_turns_thread'")
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("UPDATE projection_turns SET thread_id = (SELECT max(id) FROM projection_threads)")
        connection.execute("DELETE FROM projection_turns WHERE id = (SELECT max(id) FROM projection_turns)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "INSERT INTO sqlite_master VALUES ('index', 'idx_turns_thread', 'projection_turns', ?, ?)", definition
        )


def _old_log_beside(url: URL) -> None:
    """Puts a copy of an older state beside the -wal file of a newer one."""
    file = file_of(url)
    older = file.read_bytes()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for name in "abcdef":
            connection.execute("INSERT INTO settings VALUES (?, ?)", (name, name * 40_000))
        log = Path(f"{file}-wal").read_bytes()
    file.write_bytes(older[: len(older) // 2])
    Path(f"{file}-wal").write_bytes(log)


def _at_revision(revision: str) -> Callable[[URL], object]:
    return lambda url: thaw(revision, file_of(url))


NEXT = "(SELECT max(sequence) + 1 FROM events)"
EDITED = """replace(payload, '"name":"', '"name":"edited ')"""
AT_NOON = "'2026-03-01T12:00:00.000000Z'"

DAMAGES = [
    Damage("nothing is there: an empty file", replaced(b""), "revision", "failure", "no tables yet", "migrate", FILE),
    Damage(
        "the file is something else", replaced(b"something else" * 100), "opening", "failure", "not an SQLite database",
        where=FILE, is_open=False,
    ),
    Damage("the file is cut to its half", _cut, "opening", "failure", "damaged", where=FILE, is_open=False),
    Damage("a page of the log is zeros", _zero_page("events"), "integrity", "failure", "salvage_database", "", FILE),
    Damage(
        "a page of an index is zeros", _zero_page("idx_events_sequence"), "integrity", "failure", "damaged",
        where=FILE,
    ),
    Damage(
        "an index lacks rows of its table", _index_without_row, "integrity", "failure", "idx_turns_thread", "REINDEX",
        FILE,
    ),
    Damage(
        "the -wal file is of another state", _old_log_beside, "opening", "failure", "another state", where=FILE,
        is_open=False,
    ),
    Damage("a rollback journal instead of WAL", _rollback_journal, "journal mode", "warning", "delete", "WAL", FILE),
    Damage("others can read the file", mode(0o644, 0o700), "permissions", "warning", "other users", "chmod 600", FILE),
    Damage("all can change the file", mode(0o666, 0o700), "permissions", "failure", "every user", "chmod 600", FILE),
    Damage("all can change the folder", mode(0o600, 0o777), "permissions", "failure", "replace", "chmod 700", FILE),
    Damage(
        "a trigger is missing", bare_sql("DROP TRIGGER events_refuse_update"), "append-only", "failure",
        "events_refuse_update is missing", "migrate --sql", FILE,
    ),
    Damage(
        "a trigger does nothing",
        bare_sql(
            "DROP TRIGGER events_refuse_delete",
            "CREATE TRIGGER events_refuse_delete BEFORE DELETE ON events BEGIN SELECT 1; END",
        ),
        "append-only", "failure", "does not refuse", "migrate --sql", FILE,
    ),
    Damage(
        "a trigger is missing", bare_sql("DROP TRIGGER events_refuse_change ON events"), "append-only", "failure",
        "events_refuse_change is missing", "migrate --sql", POSTGRESQL,
    ),
    Damage(
        "a trigger is disabled", bare_sql("ALTER TABLE events DISABLE TRIGGER events_refuse_change"),
        "disabled triggers", "failure", "disabled", "ENABLE TRIGGER events_refuse_change", POSTGRESQL,
    ),
    Damage(
        "the row of append_lock is missing", bare_sql("DELETE FROM append_lock"), "append-only", "failure",
        "append_lock", "INSERT INTO append_lock", POSTGRESQL,
    ),
    Damage(
        "a table of the projection is missing", bare_sql("DROP TABLE projection_commits"), "schema", "failure",
        "projection_commits is missing", "peon rebuild",
    ),
    Damage(
        "another table is missing", bare_sql("DROP TABLE settings"), "schema", "failure", "settings is missing",
        "restore a backup",
    ),
    Damage(
        "an index is missing", bare_sql("DROP INDEX idx_turns_thread"), "schema", "failure",
        "idx_turns_thread is missing", "CREATE INDEX idx_turns_thread",
    ),
    Damage(
        "a column is missing", bare_sql("ALTER TABLE projection_commits DROP COLUMN message"), "schema", "failure",
        "projection_commits.message is missing", "peon rebuild",
    ),
    Damage(
        "a column was added", bare_sql("ALTER TABLE settings ADD COLUMN mine TEXT"), "schema", "warning",
        "settings.mine is not one of Peon's",
    ),
    Damage(
        "two revisions", bare_sql("INSERT INTO alembic_version VALUES ('001_initial')"), "revision", "failure",
        "several rows", "",
    ),
    Damage(
        "no revision", bare_sql("DELETE FROM alembic_version"), "revision", "failure", "have no revision",
        "of the newest tables it is",
    ),
    Damage(
        "a newer revision", bare_sql("UPDATE alembic_version SET version_num = '999_newer'"), "revision", "failure",
        "999_newer", "",
    ),
    Damage("an older revision", _at_revision("003_projections"), "revision", "warning", "003", "peon migrate", FILE),
    Damage(
        "the identity of the log is missing", bare_sql("DELETE FROM log_identity"), "log identity", "failure",
        "0 rows", "renew_log_id",
    ),
    Damage(
        "a blob for a payload", sql("UPDATE events SET payload = CAST(payload AS BLOB) WHERE sequence = 4"),
        "column types", "failure", "the first is 4", "restore a backup", FILE,
    ),
    Damage(
        "a payload that is not JSON", sql("UPDATE events SET payload = '{' WHERE sequence IN (3, 5)"), "decoding",
        "failure", "cannot be decoded", "handle-undecodable",
    ),
    Damage(
        "an event of an unknown type",
        bare_sql(f"INSERT INTO events VALUES ({NEXT}, 'Strange', '{{}}', {AT_NOON})"), "decoding", "warning",
        "1 event of the type 'Strange'", "newer version",
    ),
    Damage(
        "a time that is none", sql("UPDATE events SET stored_at = 'yesterday' WHERE sequence = 2"), "decoding",
        "failure", "not a timestamp",
    ),
    Damage(
        "an event was removed", sql("DELETE FROM events WHERE sequence IN (4, 7, 8)"), "sequences", "warning",
        "3 events are missing: 4, 7 to 8", "restore a backup",
    ),
    Damage(
        "the first event was removed", sql("DELETE FROM events WHERE sequence = 1"), "sequences", "warning",
        "1 event is missing: 1", "restore a backup",
    ),
    Damage(
        "the last events were removed", sql("DELETE FROM events WHERE sequence > 15"), "sequences", "warning",
        "the log ends with 15", "restore a backup", FILE,
    ),
    Damage(
        "an event with the largest sequence",
        bare_sql(f"INSERT INTO events VALUES ({2**63 - 1}, 'A', '{{}}', {AT_NOON})"), "range of sequences", "failure",
        "0 sequences are left", "restore a backup",
    ),
    Damage(
        "the counter of sequences is at its end",
        bare_sql(f"UPDATE sqlite_sequence SET seq = {2**63 - 1} WHERE name = 'events'"), "range of sequences",
        "failure", "0 sequences are left", "restore a backup", FILE,
    ),
    Damage(
        "the clock was set back", sql(f"UPDATE events SET stored_at = {AT_NOON} WHERE sequence = 5"), "clock",
        "warning", "first before event 5", "NTP",
    ),
    Damage(
        "an event from the future",
        sql("UPDATE events SET stored_at = '2999-01-01T00:00:00.000000Z' WHERE sequence = 19"),
        "clock", "warning", "1 event is from the future", "NTP",
    ),
    Damage(
        "an edited event", sql(f"UPDATE events SET payload = {EDITED} WHERE sequence < 3"), "projected rows",
        "failure", "projection_projects", "peon rebuild", is_deep=True,
    ),
    Damage(
        "a row of the projection is missing", bare_sql("DELETE FROM projection_commits"), "projected rows", "failure",
        "projection_commits", "peon rebuild", is_deep=True,
    ),
    Damage(
        "a projection ahead of the log", bare_sql("UPDATE projection_positions SET sequence = 99"), "projections",
        "failure", "has applied 99 events", "peon rebuild",
    ),
    Damage(
        "a projection behind the log", bare_sql("UPDATE projection_positions SET sequence = 9"), "projections",
        "warning", "10 events behind", "peon rebuild",
    ),
    Damage(
        "a projection of another version", bare_sql("UPDATE projection_positions SET version = version + 1"),
        "projections", "warning", "a newer version", "install",
    ),
    Damage(
        "an event that was not applied",
        bare_sql("INSERT INTO projection_problems VALUES ('orchestration', 3, 'A', 'wrong')"), "projections",
        "warning", "could not apply 1 event, the first is 3", "projection_problems",
    ),
    Damage(
        "a subscription ahead of the log",
        bare_sql(f"INSERT INTO subscription_positions VALUES ('mails', 99, {AT_NOON})"), "subscriptions", "failure",
        "'mails' has handled 99", "set-position mails 19",
    ),
    Damage(
        "a command ahead of the log", bare_sql(f"INSERT INTO command_receipts VALUES ('a', 18, 3, {AT_NOON})"),
        "commands", "failure", "1 command is recorded", "DELETE FROM command_receipts",
    ),
    Damage(
        "rows of the tag index are missing",
        bare_sql("DELETE FROM event_tags WHERE sequence = (SELECT max(sequence) FROM event_tags)"), "tag index",
        "failure", "other entries", "DELETE FROM tag_positions",
    ),
    Damage(
        "an event moved in the tag index",
        bare_sql("UPDATE event_tags SET sequence = 1 WHERE sequence = (SELECT max(sequence) FROM event_tags)"),
        "tag index", "failure", "other entries", "DELETE FROM tag_positions",
    ),
    Damage(
        "the tag index ahead of the log", bare_sql("UPDATE tag_positions SET sequence = 99"), "tag index", "failure",
        "beyond the end", "DELETE FROM tag_positions",
    ),
    Damage("the tags are missing", bare_sql("DELETE FROM tags"), "tag index", "failure", "without a tag", "tags"),
    Damage(
        "a row without its parent",
        bare_sql("DELETE FROM projection_projects WHERE id = (SELECT project_id FROM projection_threads LIMIT 1)"),
        "foreign keys", "failure", "1 row of projection_threads refers to a row of", "peon rebuild",
    ),
]  # fmt: skip
