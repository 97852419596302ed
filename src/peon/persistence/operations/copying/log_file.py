"""Reads an exported log, and checks all of it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from peon.persistence.errors import DamagedFile, PersistenceError
from peon.persistence.operations.copying.log_lines import (
    EventRow,
    GapRow,
    Header,
    NotALine,
    ReceiptRow,
    Trailer,
    read_header,
    read_line,
    read_trailer,
)
from peon.persistence.runtime.compression import COPIED_BYTES, decompressing
from peon.persistence.runtime.new_files import file_errors

Entry = EventRow | ReceiptRow | GapRow


class LogFile:
    """An exported log that is open.

    Attributes:
        name: What errors call it.
    """

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw = raw
        self.name = name

    @classmethod
    @contextmanager
    def opened(cls, file: Path | BinaryIO) -> "Iterator[LogFile]":
        """Opens a path, or takes a stream. A pipe is copied to a temporary file, because it is read twice.

        Raises:
            PersistenceError: The file cannot be read.
        """
        if isinstance(file, Path):
            with file_errors(file):
                raw = file.open("rb")
            with raw:
                yield cls(raw, str(file))
            return
        name = str(getattr(file, "name", "the stream"))
        if file.seekable():
            yield cls(file, name)
            return
        with tempfile.TemporaryFile() as spooled:
            with file_errors(Path(name)):
                copyfileobj(file, spooled, COPIED_BYTES)
            yield cls(spooled, name)

    def header(self) -> Header:
        """Returns what the first line says.

        Raises:
            PersistenceError: The file is not an exported log, or one of a newer version.
        """
        with decompressing(self._raw, self.name) as stream, file_errors(Path(self.name)):
            return self._header(stream.readline())

    def entries(self) -> Iterator[Entry]:
        """Yields all records of compactions, events and receipts, in the order of the file.

        Raises:
            DamagedFile: The file is cut or altered, which may be known only after its end.
            PersistenceError: It cannot be read.
        """
        hashed = sha256()
        gaps = events = commands = 0
        last: int | None = None
        with decompressing(self._raw, self.name) as stream, file_errors(Path(self.name)):
            header = self._header(line := stream.readline())
            hashed.update(line)
            for number, line in enumerate(stream, 2):
                try:
                    entry = read_line(line)
                except NotALine:
                    found = Trailer(events=events, commands=commands, sha256=hashed.hexdigest())
                    self._require_end(line, number, stream, header, found, gaps)
                    return
                hashed.update(line)
                if isinstance(entry, ReceiptRow):
                    commands += 1
                elif isinstance(entry, GapRow):
                    gaps += 1
                else:
                    events += 1
                    if last is not None and entry[0] <= last:
                        raise self._altered(f"in line {number}, event {entry[0]} follows event {last}")
                    last = entry[0]
                yield entry
        raise self._altered("its last line, with the checksum, is missing")

    def verify(self, check: Callable[[Entry], None], done: Callable[[int], None]) -> Header:
        """Reads the whole file, and returns what its first line says.

        Args:
            check: Is called with each entry.
            done: Is called with the number of further events that were read, from time to time.
        """
        pending = 0
        for entry in self.entries():
            check(entry)
            pending += not isinstance(entry, ReceiptRow | GapRow)
            if pending == 1_000:
                done(pending)
                pending = 0
        done(pending)
        return self.header()

    def _header(self, line: bytes) -> Header:
        try:
            return read_header(line)
        except NotALine:
            raise PersistenceError(
                f"{self.name} is not a log that this version of peon can read: its first line does not describe one. "
                "Name a file that `peon export` or `export_log` has written, or install a newer version of peon"
            ) from None

    def _require_end(
        self, line: bytes, number: int, stream: BinaryIO, header: Header, found: Trailer, gaps: int
    ) -> None:
        try:
            trailer = read_trailer(line)
        except NotALine:
            raise self._altered(f"line {number} is neither an event nor a receipt, or is not complete") from None
        if not line.endswith(b"\n") or stream.read(1):
            raise self._altered(f"it does not end with line {number}, which has the checksum")
        numbers = (gaps, found.events, found.commands)
        if trailer != found or (header.gaps, header.events, header.commands) != numbers:
            raise self._altered("its content does not fit its checksum or its numbers of events and commands")

    def _altered(self, reason: str) -> DamagedFile:
        return DamagedFile(
            f"{self.name} was cut or altered after it was exported: {reason}. Export the log again, or use "
            "another copy of the file"
        )
