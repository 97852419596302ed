"""Appends an exported log to a log, each command and each event once."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID, uuid5

from sqlalchemy import Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.interface import LogHead
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.errors import CommandConflict
from peon.persistence.log.idempotency import Receipt, add_receipt, receipt_of
from peon.persistence.log.pages import PAGE_CHARACTERS, PAGE_EVENTS
from peon.persistence.operations.copying.log_lines import EventRow, ReceiptRow
from peon.persistence.projections.replay import Meter
from peon.persistence.runtime.counts import counted
from peon.persistence.schema.timestamps import format_timestamp

_NAMESPACE = UUID("6a8f5d0e-3c0b-4f0e-9a51-5b2b8a7c1d94")
"""Of the commands under which events without a command are stored."""


class Batch(NamedTuple):
    """Events that are stored together.

    Attributes:
        command_id: The command that stored them in the exported log; `None` if there is none.
    """

    command_id: UUID | None
    rows: list[EventRow]


class Appended(NamedTuple):
    """What one transaction has done.

    Attributes:
        events: Events that were stored.
        skipped: Events that were stored before.
        commands: Receipts of the exported log that were stored.
        ahead: Events without a command after the last batch that are stored already.
    """

    events: int
    skipped: int
    commands: int
    ahead: int


def append_entries(engine: Engine, entries: Iterable[EventRow | ReceiptRow], log_id: UUID, meter: Meter) -> Appended:
    """Stores the events of another log as new ones, in transactions of about a page.

    Events without a command are stored under a command that is derived from their place in the other log. So they are
    skipped if the same file, or a later export of the same log, is appended again.

    Args:
        log_id: The identity of the exported log.

    Raises:
        CommandConflict: A command has stored another number of events here.
        StoreUnavailable: The database cannot be used. What was committed before stays, and is skipped the next time.
    """
    events = skipped = commands = ahead = 0
    for group in _groups(_batches(entries)):
        done = with_own_commit(
            engine,
            DriverErrors(engine),
            lambda own, group=group, ahead=ahead: _append(own, group, log_id, ahead),  # type: ignore[misc]
            advice="import again, which skips what was stored",
        )
        events += done.events
        skipped += done.skipped
        commands += done.commands
        ahead = done.ahead
        meter.add(done.events + done.skipped)
    return Appended(events, skipped, commands, ahead)


def _batches(entries: Iterable[EventRow | ReceiptRow]) -> Iterator[Batch]:
    """Yields the events of each command that has all of them, and the others in pages."""
    receipt: ReceiptRow | None = None
    rows: list[EventRow] = []
    characters = 0
    for entry in entries:
        if isinstance(entry, ReceiptRow):
            if rows:
                yield Batch(None, rows)
            receipt, rows, characters = entry, [], 0
            if not entry.events:
                yield Batch(UUID(entry.command_id), [])
                receipt = None
            continue
        if receipt is not None and (entry[0], entry[3]) != (receipt.first_sequence + len(rows), receipt.stored_at):
            receipt = None  # some of its events were removed
        rows.append(entry)
        characters += len(entry[2] or "")
        if receipt is not None and len(rows) == receipt.events:
            yield Batch(UUID(receipt.command_id), rows)
        elif receipt is not None or (len(rows) < PAGE_EVENTS and characters < PAGE_CHARACTERS):
            continue
        else:
            yield Batch(None, rows)
        receipt, rows, characters = None, [], 0
    if rows:
        yield Batch(None, rows)


def _groups(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Yields what one transaction stores: a commit for each command would take most of the time."""
    group: list[Batch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += max(len(batch.rows), 1)
        if size >= PAGE_EVENTS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _append(own: OwnTransaction, group: list[Batch], log_id: UUID, ahead: int) -> Appended:
    head = backend_of(own.connection).join_append(own.connection)
    events = skipped = commands = 0
    for command_id, rows in group:
        if command_id is not None:
            receipt = receipt_of(own.connection, command_id)
            if receipt is None:
                _store(head, command_id, rows)
                events += len(rows)
                commands += 1
            elif receipt.events == len(rows):
                skipped += len(rows)
            else:
                reason = f"it has stored {counted(receipt.events, 'event')} here, and {len(rows)} in the exported log"
                raise CommandConflict(command_id, reason)
            continue
        while rows:
            if not ahead:
                derived = uuid5(_NAMESPACE, f"{log_id} {rows[0][0]} {rows[0][3]!r}")
                receipt = receipt_of(own.connection, derived)
                if receipt is None:
                    _store(head, derived, rows)
                    events += len(rows)
                    break
                ahead = receipt.events  # an earlier export may have ended, or cut its pages, elsewhere
            passed = min(ahead, len(rows))
            skipped += passed
            ahead -= passed
            rows = rows[passed:]
    own.commit()
    return Appended(events, skipped, commands, ahead)


def _store(head: LogHead, command_id: UUID, rows: list[EventRow]) -> None:
    if rows:
        first, moment = head.add([str(row[1]) for row in rows], [str(row[2]) for row in rows])
        stored_at = format_timestamp(moment)
    else:
        first, stored_at = 0, format_timestamp(datetime.now(UTC))
    add_receipt(head.connection, command_id, Receipt(first, len(rows), stored_at))
