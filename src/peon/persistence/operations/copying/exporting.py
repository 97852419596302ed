"""Writes the log to a file of JSON Lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import Connection, Engine, func, inspect, select

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import require_existing
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.errors import PersistenceError
from peon.persistence.log.identity import identity_of_log
from peon.persistence.log.pages import LogPages
from peon.persistence.migrations import current_revision
from peon.persistence.operations.copying.log_lines import (
    FORMAT,
    FORMAT_VERSION,
    RECORDS,
    GapRow,
    Header,
    InvalidText,
    ReceiptRow,
    Trailer,
    event_lines,
    gap_line,
    header_line,
    receipt_line,
    trailer_line,
)
from peon.persistence.operations.copying.transaction import place_of
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.runtime.compression import compressing, compression_of
from peon.persistence.runtime.new_files import file_errors, new_file
from peon.persistence.schema import command_receipts, events, log_identity

RECEIPTS_AT_ONCE = 1_000
"""Receipts that are fetched at once."""

# Below every sequence, including negative ones that were inserted by hand.
_BEFORE_ALL = -(2**63)


class ExportReport(NamedTuple):
    """What `export_log` has written.

    Attributes:
        events: The number of events.
        commands: The number of receipts of commands.
        last_sequence: The sequence of the last event, 0 for an empty log.
        sha256: The checksum in the last line.
    """

    events: int
    commands: int
    last_sequence: int
    sha256: str


def export_log(
    engine: Engine, file: Path | BinaryIO, *, replace: bool = False, progress: Progress | None = None
) -> ExportReport:
    """Writes the log to a file of JSON Lines, which `import_log` reads.

    The log is read in one transaction: others may keep appending, but what they append is not exported. Events that
    cannot be decoded are exported as they are stored. Receipts of commands are exported with their events, and so is
    what compactions and redactions have recorded. Settings,
    positions of subscriptions and projections are not. The database may be at an older revision.

    Args:
        file: A path, or a stream that is written to, such as `sys.stdout.buffer`. A path that ends with `.gz` or
            `.zst` is compressed. The file appears when it is complete, and only its owner can read it.
        replace: Replace a file that exists.
        progress: Called after each page with the number of events done and to do.

    Raises:
        StoreUnavailable: The database is locked, damaged or not reachable.
        PersistenceError: The file exists, or cannot be written; the row of a receipt is damaged.
    """
    require_existing(engine.url)
    path = file if isinstance(file, Path) else Path(str(getattr(file, "name", "the stream")))
    with _opened(file, replace) as stream, _reading(engine) as connection:
        return _Export(connection, stream, path, progress).run()


@contextmanager
def _opened(file: Path | BinaryIO, replace: bool) -> Iterator[BinaryIO]:
    if not isinstance(file, Path):
        yield file
        return
    with (
        new_file(file, replace=replace) as partial,
        partial.open("wb") as raw,
        compressing(raw, compression_of(file)) as stream,
    ):
        yield stream


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    backend = backend_of(engine)
    with (
        DriverErrors(engine, expects_tables=True),
        backend.consistent_reads(engine).connect() as connection,
        backend.text_decoded_by(connection, _decode_if_valid),
    ):
        connection.begin()  # rolled back at the end: SQLite refuses a COMMIT after it has met a damaged page
        yield connection


class _Export:
    def __init__(self, connection: Connection, stream: BinaryIO, path: Path, progress: Progress | None) -> None:
        self._connection = connection
        self._stream = stream
        self._path = path
        self._progress = progress
        self._hash = sha256()
        tables = inspect(connection).get_table_names()
        self._has_receipts = command_receipts.name in tables
        self._has_identity = log_identity.name in tables
        self._tables = tables

    def run(self) -> ExportReport:
        count, first, last = self._connection.execute(
            select(func.count(), func.min(events.c.sequence), func.max(events.c.sequence)).select_from(events)
        ).one()
        commands = self._count_receipts()
        gaps = self._gaps()
        header = Header(
            format=FORMAT,
            version=FORMAT_VERSION,
            peon=version("peon"),
            revision=current_revision(self._connection),
            log_id=identity_of_log(self._connection) if self._has_identity else None,
            gaps=len(gaps),
            events=count,
            commands=commands,
            first_sequence=first or 0,
            last_sequence=last or 0,
        )
        self._write(header_line(header) + b"".join(map(gap_line, gaps)))
        meter = Meter(self._progress, count)
        receipts = self._receipts()
        next_receipt = next(receipts, None)
        pages = LogPages(self._connection.engine, DriverErrors(self._connection.engine))
        after = _BEFORE_ALL
        while page := pages.read_page(self._connection, after):
            start = 0
            while next_receipt is not None and next_receipt.first_sequence <= page[-1][0]:
                before = next(index for index, row in enumerate(page) if row[0] >= next_receipt.first_sequence)
                self._write(event_lines(page[start:before]))
                self._write(receipt_line(next_receipt))
                start = before
                next_receipt = next(receipts, None)
            self._write(event_lines(page[start:]))
            meter.add(len(page))
            after = page[-1][0]
        while next_receipt is not None:
            self._write(receipt_line(next_receipt))
            next_receipt = next(receipts, None)
        trailer = Trailer(events=count, commands=commands, sha256=self._hash.hexdigest())
        self._write(trailer_line(trailer))
        with file_errors(self._path):
            self._stream.flush()
        return ExportReport(count, commands, last or 0, trailer.sha256)

    def _write(self, lines: bytes) -> None:
        self._hash.update(lines)
        with file_errors(self._path):  # the engine's errors would name the database
            self._stream.write(lines)

    def _gaps(self) -> list[GapRow]:
        return [
            GapRow(table.name, tuple(row))
            for table in RECORDS
            if table.name in self._tables
            for row in self._connection.execute(select(table).order_by(*table.primary_key))
        ]

    def _count_receipts(self) -> int:
        if not self._has_receipts:
            return 0
        return self._connection.scalars(select(func.count()).select_from(command_receipts)).one()

    def _receipts(self) -> Iterator[ReceiptRow]:
        """Yields the receipts in the order of their events."""
        if not self._has_receipts:
            return
        kinds = [column.type.python_type for column in command_receipts.columns]
        query = select(command_receipts).order_by(command_receipts.c.first_sequence, command_receipts.c.command_id)
        rows: Any = self._connection.execute(query, execution_options={"yield_per": RECEIPTS_AT_ONCE})
        for row in rows:
            if [*map(type, row)] != kinds:
                raise PersistenceError(
                    f"{database_name(self._connection.engine)}: {place_of(command_receipts, tuple(row))} is damaged: "
                    "correct or remove the row, and export again"
                )
            yield ReceiptRow(*row)


def _decode_if_valid(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return InvalidText(raw)
