"""Stores an exported log in a database."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine, Text, bindparam, cast, delete, insert

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.errors import PersistenceError
from peon.persistence.log.identity import identity_of_log
from peon.persistence.log.pages import PAGE_CHARACTERS, PAGE_EVENTS
from peon.persistence.migrations import require_head
from peon.persistence.operations.copying.appending import append_entries
from peon.persistence.operations.copying.log_file import Entry, LogFile
from peon.persistence.operations.copying.log_lines import RECORDS, EventRow, GapRow, Header, InvalidText, ReceiptRow
from peon.persistence.operations.copying.transaction import INDEX_TABLES, Rows
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.schema import LAST_SEQUENCE, command_receipts, events

_GAP_TABLES = {table.name: table for table in RECORDS}


class ImportReport(NamedTuple):
    """What `import_log` has stored.

    Attributes:
        events: The number of events that were stored.
        skipped: The number of events that were there already, with `append`.
        commands: The number of receipts of commands that were stored.
        last_sequence: The sequence of the last event of the log now.
    """

    events: int
    skipped: int
    commands: int
    last_sequence: int


def import_log(
    engine: Engine, file: Path | BinaryIO, *, append: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Stores a log that `export_log` has written, possibly on the other backend.

    The whole file is checked before anything is stored. Into an empty log, events keep their sequences and times, and
    all is one transaction. Call `projections.catch_up()` afterwards.

    Args:
        file: A path, or a stream that is read, such as `sys.stdin.buffer`. Its content tells whether it is compressed.
        append: Store the events as new ones after those of the log, with new sequences and times, in transactions of
            about 1,000 events. Events of a command that the log has stored are skipped, and so are events that an
            earlier import of the same log has stored. After an error, import again.
        progress: Called after each page with the number of events done and to do. Each event counts twice: it is
            checked, and then stored.

    Raises:
        SchemaOutOfDate: The database is not at the newest revision.
        CommandConflict: With `append`, a command of the file has stored another number of events here.
        StoreUnavailable: The database is locked, read-only, full, damaged or not reachable.
        DamagedFile: The file was cut or altered.
        PersistenceError: The file cannot be read, or has events that this database cannot store; the log is not empty,
            or with `append`, is the one that was exported, or was compacted before.
    """
    require_head(engine)
    with LogFile.opened(file) as log:
        header = log.header()
        meter = Meter(progress, 2 * header.events)
        log.verify(_Check(engine, log.name, append=append), meter.add)
        if append:
            return _append(engine, log, header, meter)
        return with_own_commit(
            engine,
            DriverErrors(engine),
            lambda own: _keep(own, log, header, meter),
            advice="import again, which is refused if it has",
        )


class _Check:
    """Raises `PersistenceError` for an entry that a database cannot store."""

    def __init__(self, engine: Engine, name: str, *, append: bool) -> None:
        self._name = name
        self._append = append
        # Only SQLite stores values that are not text in a column of text, as it does text with NUL characters.
        self._stores_nul = backend_of(engine).stores_nul

    def __call__(self, entry: Entry) -> None:
        if isinstance(entry, GapRow):
            columns = _GAP_TABLES[entry.table].columns
            if [*map(type, entry.values)] != [column.type.python_type for column in columns]:
                self._refuse(f"a record of the table {entry.table} has other columns")
            return
        if isinstance(entry, ReceiptRow):
            if self._append and not _is_uuid(entry.command_id):
                self._refuse(f"the identifier of the command that stored event {entry.first_sequence} is not a UUID")
            return
        sequence, *values = entry
        if {*map(type, values)} != {str}:
            if self._append or not self._stores_nul or None in values:
                self._refuse(f"event {sequence} has a value that is not text: import into an empty SQLite database")
        elif not self._stores_nul and any("\0" in str(value) for value in values):
            self._refuse(
                f"event {sequence} holds a NUL character, which PostgreSQL cannot store in text: import into an SQLite "
                "database"
            )

    def _refuse(self, reason: str) -> None:
        raise PersistenceError(f"{self._name}: {reason}. Nothing was stored")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _append(engine: Engine, log: LogFile, header: Header, meter: Meter) -> ImportReport:
    with DriverErrors(engine), backend_of(engine).consistent_reads(engine).connect() as connection:
        own_id = identity_of_log(connection)
    if header.log_id is None:
        raise PersistenceError(
            f"{log.name} was exported at revision {header.revision}, before logs had an identity: migrate that "
            "database and export again, or import into an empty log"
        )
    if header.gaps:
        raise PersistenceError(
            f"{log.name} was exported after a compaction or a redaction, so it does not tell which of its events an "
            "earlier import has stored: import into an empty log"
        )
    if header.log_id == own_id:
        raise PersistenceError(
            f"{log.name} was exported from {database_name(engine)} itself, whose events it would store twice: name "
            "another database"
        )
    entries = (entry for entry in log.entries() if not isinstance(entry, GapRow))  # there are none
    done = append_entries(engine, entries, header.log_id, meter)
    with DriverErrors(engine), backend_of(engine).consistent_reads(engine).connect() as connection:
        return ImportReport(done.events, done.skipped, done.commands, _last_sequence(connection))


def _keep(own: OwnTransaction, log: LogFile, header: Header, meter: Meter) -> ImportReport:
    backend = backend_of(own.connection)
    backend.join_append(own.connection)
    backend.lock_tables(own.connection, [command_receipts])
    stored = Rows(own.connection, DriverErrors(own.connection.engine))
    if present := [table.name for table in (events, command_receipts) if stored.count(table)]:
        raise PersistenceError(
            f"{stored.database} is not empty: it holds rows of {' and '.join(present)}. Nothing was stored; choose a "
            "new database, or store the events as new ones after those of the log: with append=True, or  peon import "
            "--append"
        )
    for table in (*INDEX_TABLES, *_GAP_TABLES.values()):  # may be left from a log that was deleted by hand
        own.connection.execute(delete(table))
    _Inserted(stored, meter).add(log)  # the checksum is compared again before the commit
    own.commit()
    return ImportReport(header.events, 0, header.commands, header.last_sequence)


class _Inserted:
    """Collects rows, and inserts them in pages."""

    def __init__(self, stored: Rows, meter: Meter) -> None:
        self._stored = stored
        self._meter = meter
        self._rows: list[EventRow] = []
        self._receipts: list[ReceiptRow] = []
        self._gaps: list[GapRow] = []
        self._characters = 0

    def add(self, log: LogFile) -> None:
        for entry in log.entries():
            if isinstance(entry, ReceiptRow):
                self._receipts.append(entry)
            elif isinstance(entry, GapRow):
                self._gaps.append(entry)
            else:
                self._rows.append(entry)
                self._characters += len(entry[2] or "")
            number = len(self._rows) + len(self._receipts) + len(self._gaps)
            if number >= PAGE_EVENTS or self._characters > PAGE_CHARACTERS:
                self._insert()
        self._insert()

    def _insert(self) -> None:
        odd = [row for row in self._rows if InvalidText in map(type, row)]
        self._stored.add(events, [row for row in self._rows if row not in odd] if odd else self._rows)
        for row in odd:
            with self._stored.driver_errors:
                _insert_odd(self._stored.connection, row)
        self._stored.add(command_receipts, self._receipts)
        for name, table in _GAP_TABLES.items():
            self._stored.add(table, [gap.values for gap in self._gaps if gap.table == name])
        self._meter.add(len(self._rows))
        self._rows, self._receipts, self._gaps, self._characters = [], [], [], 0


def _insert_odd(connection: Connection, row: EventRow) -> None:
    """Inserts a row with text that is not UTF-8, which the driver takes only as bytes."""
    values: Sequence[object] = row
    columns = dict(zip(events.columns.keys(), values, strict=True))
    statement = insert(events).values(
        {
            name: cast(bindparam(name), Text) if isinstance(value, InvalidText) else bindparam(name)
            for name, value in columns.items()
        }
    )
    CompiledStatement(statement, list(columns)).run(connection, [row])


def _last_sequence(connection: Connection) -> int:
    return int(connection.scalars(LAST_SEQUENCE).one())
