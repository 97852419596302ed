"""Stored events, and how the rows of the log become events."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from peon.persistence.errors import EventDecodeError
from peon.persistence.log.codec import EventCodec, EventT, UndecodableEvent
from peon.persistence.log.pages import LogRow
from peon.persistence.schema.timestamps import parse_timestamp

StoredT = TypeVar("StoredT", covariant=True)

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""The `stored_at` of an undecodable row whose column holds no time."""


class StoredEvent(NamedTuple, Generic[StoredT]):
    """An event with its place in the log.

    It is a tuple because that is the cheapest immutable value, and one is created for each event that is read.

    Attributes:
        sequence: Its number in the log, counted from 1. There are no gaps but those that `Maintenance` records.
        event: The event; an `UndecodableEvent` only if the read asked for those.
        stored_at: When it was stored, in UTC, by the clock of the machine that stored it. `NO_TIME` for an
            `UndecodableEvent` whose row has no valid time.
    """

    sequence: int
    event: StoredT
    stored_at: datetime


def decoded(pages: Iterable[list[LogRow]], codec: EventCodec[EventT], *, keep: bool) -> Iterator[StoredEvent[Any]]:
    """Yields the events of the rows, and clears each page.

    Args:
        keep: Yield an `UndecodableEvent` in the place of an event that cannot be decoded, instead of raising.

    Raises:
        EventDecodeError: At an event that cannot be decoded. All before it were yielded.
    """
    decoders = codec.decoders
    new = tuple.__new__  # takes two thirds of the time of calling StoredEvent
    text, moment = None, NO_TIME
    event: EventT | UndecodableEvent
    for page in pages:
        for sequence, event_type, payload, stored_at in page:
            try:
                if stored_at != text:  # the events of a batch have the same time
                    moment = parse_timestamp(stored_at)
                    text = stored_at
                event = decoders[event_type](payload)
            except Exception:
                # Decoded again on the slow path, which explains the failure.
                moment, event = _decode_or_keep((sequence, event_type, payload, stored_at), codec, keep=keep)
                text = None
            yield new(StoredEvent, (sequence, event, moment))
        # The next page then reuses memory that is in the processor's cache: a tenth faster.
        page.clear()


def _decode_or_keep(
    row: LogRow, codec: EventCodec[EventT], *, keep: bool
) -> tuple[datetime, EventT | UndecodableEvent]:
    sequence, event_type, payload, stored_at = row
    moment = NO_TIME
    try:
        moment = _parse_stored_at(sequence, event_type, stored_at)
        return moment, codec.decode(sequence, event_type, payload)
    except EventDecodeError as error:
        if not keep:
            raise
        return moment, UndecodableEvent(_as_text(event_type), _as_text(payload), error.reason)


def _parse_stored_at(sequence: int, event_type: str, stored_at: str) -> datetime:
    try:
        return parse_timestamp(stored_at)
    except (ValueError, TypeError):
        raise EventDecodeError(sequence, event_type, "stored_at is not a timestamp") from None


def _as_text(value: str | bytes | None) -> str:
    if value is None:  # in a damaged file
        return ""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")
