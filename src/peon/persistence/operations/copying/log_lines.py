"""The lines of an exported log, as JSON Lines.

The first line describes the log. If it was compacted or redacted, a line follows for each record of that. Then one line
follows for each event, and before the events of a command a line with its receipt. The last line has a checksum of all
bytes before it.

A payload that is JSON on one line is part of its line, byte for byte. Any other is a JSON string. A value that is not
text is an object: `{"blob": …}` for bytes, `{"text": …}` for text that is not UTF-8, both in base64.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from peon.persistence.schema import merged_events, redacted_events, redactions, removed_events

FORMAT = "peon-log"

FORMAT_VERSION = 1

RECORDS = (removed_events, merged_events, redactions, redacted_events)
"""The tables in which compactions and redactions record what they have done."""

Value = str | bytes | None
"""A value of a row. In a damaged SQLite file, a text may be bytes, `InvalidText`, or missing."""

EventRow = tuple[int, Value, Value, Value]
"""sequence, event_type, payload, stored_at: the columns of the table."""


class InvalidText(bytes):
    """A text of an SQLite file that is not UTF-8."""


class Header(BaseModel):
    """The first line. `gaps`, `events` and `commands` are the numbers of lines that follow for each."""

    model_config = ConfigDict(frozen=True)

    format: Literal["peon-log"]
    version: Literal[1]
    peon: str
    revision: str | None
    log_id: UUID | None
    gaps: int = 0
    events: int
    commands: int
    first_sequence: int
    last_sequence: int


class Trailer(BaseModel):
    """The last line. `sha256` is that of all bytes before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: int
    commands: int
    sha256: str


class ReceiptRow(NamedTuple):
    """The receipt of a command. Its events follow from `first_sequence` on; it is 0 if there are none."""

    command_id: str
    first_sequence: int
    events: int
    stored_at: str


class GapRow(NamedTuple):
    """What a compaction or a redaction has recorded: a row of one of the tables `RECORDS`."""

    table: str
    values: tuple[int | str, ...]


class NotALine(Exception):  # noqa: N818
    """A line is none of an exported log."""


_VALUE = rb'"[^"\\]*(?:\\.[^"\\]*)*"|\{"(?:blob|text)":"[A-Za-z0-9+/=]*"\}|null'
_EVENT = re.compile(
    rb'\{"sequence":(-?\d+),"stored_at":(%b),"event_type":(%b),"payload(?:":(.*)|_text":(%b))\}\n'
    % (_VALUE, _VALUE, _VALUE),
    re.DOTALL,
)
_RECEIPT = re.compile(
    rb'\{"command_id":(%b),"first_sequence":(-?\d+),"events":(\d+),"stored_at":(%b)\}\n' % (_VALUE, _VALUE), re.DOTALL
)
_GAP = re.compile(rb'\{"table":"(%b)","row":(\[.*\])\}\n' % "|".join(table.name for table in RECORDS).encode())


def header_line(header: Header) -> bytes:
    return header.model_dump_json().encode() + b"\n"


def trailer_line(trailer: Trailer) -> bytes:
    return trailer.model_dump_json().encode() + b"\n"


def receipt_line(receipt: ReceiptRow) -> bytes:
    command_id, stored_at = _written(receipt.command_id), _written(receipt.stored_at)
    return (
        f'{{"command_id":{command_id},"first_sequence":{receipt.first_sequence},"events":{receipt.events},'
        f'"stored_at":{stored_at}}}\n'
    ).encode()


def gap_line(gap: GapRow) -> bytes:
    return b'{"table":"%b","row":%b}\n' % (gap.table.encode(), to_json(gap.values))


def event_lines(rows: Iterable[EventRow]) -> bytes:
    lines = []
    for sequence, event_type, payload, stored_at in rows:
        # Values of these columns need no escapes, unless they were written by hand.
        start = (
            f'{{"sequence":{sequence},"stored_at":{_written(stored_at)},"event_type":{_written(event_type)},"payload'
        )
        if type(payload) is str and _is_one_line_of_json(payload):
            lines.append(f'{start}":{payload}}}\n')
        else:
            lines.append(f'{start}_text":{_written(payload)}}}\n')
    return "".join(lines).encode()


def read_header(line: bytes) -> Header:
    """Raises `NotALine` for the first line of any other file."""
    try:
        return Header.model_validate_json(line)
    except ValidationError:
        raise NotALine from None


def read_trailer(line: bytes) -> Trailer:
    """Raises `NotALine` for any other line."""
    try:
        return Trailer.model_validate_json(line)
    except ValidationError:
        raise NotALine from None


def read_line(line: bytes) -> EventRow | ReceiptRow | GapRow:
    """Returns what a line between the first and the last has; raises `NotALine` for any other line."""
    try:
        if (event := _EVENT.fullmatch(line)) is not None:
            sequence, stored_at, event_type, payload, payload_text = event.groups()
            read = _read(payload_text) if payload is None else payload.decode()
            return int(sequence), _read(event_type), read, _read(stored_at)
        if (receipt := _RECEIPT.fullmatch(line)) is not None:
            command_id, first_sequence, events, receipt_stored_at = receipt.groups()
            return ReceiptRow(str(_read(command_id)), int(first_sequence), int(events), str(_read(receipt_stored_at)))
        if (gap := _GAP.fullmatch(line)) is not None:
            return GapRow(gap[1].decode(), tuple(from_json(gap[2])))
    except ValueError:  # text that is not UTF-8 or base64, or a wrong escape
        pass
    raise NotALine


def _is_one_line_of_json(payload: str) -> bool:
    if "\n" in payload or "\r" in payload:
        return False
    try:
        from_json(payload, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return False
    return True


def _written(value: Value) -> str:
    if type(value) is str:
        return encode_basestring(value)
    if value is None:
        return "null"
    kind = "text" if isinstance(value, InvalidText) else "blob"
    return to_json({kind: b64encode(value)}).decode()  # type: ignore[arg-type]


def _read(value: bytes) -> Value:
    if value[:1] == b'"':
        return value[1:-1].decode() if b"\\" not in value else str(from_json(value))
    if value == b"null":
        return None
    (kind, encoded), *_ = from_json(value).items()
    raw = b64decode(encoded, validate=True)
    return InvalidText(raw) if kind == "text" else raw
