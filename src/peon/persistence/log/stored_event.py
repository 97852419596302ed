"""Rows of the log to events in their places."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from peon.persistence.errors import EventDecodeError
from peon.persistence.log.codec import EventCodec, EventT, UndecodableEvent
from peon.persistence.log.pages import LogRow
from peon.persistence.schema.timestamps import parse_timestamp

StoredT = TypeVar("StoredT", covariant=True)

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""Stands for the `stored_at` of a row whose column holds no time, where such rows are kept."""


class StoredEvent(NamedTuple, Generic[StoredT]):
    """An event in its place in the log. A tuple, as it is the cheapest frozen value: it is made for each event read.

    Attributes:
        sequence: Its number, counted from 1 without gaps.
        event: The event; an `UndecodableEvent` where the read was asked to keep those.
        stored_at: When it was stored, in UTC, by the clock of the machine that stored it. `NO_TIME` for an
            `UndecodableEvent` whose row does not say.
    """

    sequence: int
    event: StoredT
    stored_at: datetime


def decoded(pages: Iterable[list[LogRow]], codec: EventCodec[EventT], *, keep: bool) -> Iterator[StoredEvent[Any]]:
    """Yields the events of the rows, and empties the pages.

    Args:
        keep: Yield an `UndecodableEvent` in the place of one that cannot be decoded; otherwise raise.

    Raises:
        EventDecodeError: At an event that cannot be decoded. All before it were yielded.
    """
    decoders = codec.decoders
    new = tuple.__new__  # two thirds of the time of calling StoredEvent
    text, moment = None, NO_TIME
    event: EventT | UndecodableEvent
    for page in pages:
        for sequence, event_type, payload, stored_at in page:
            try:
                if stored_at != text:  # the events of a batch share it
                    moment = parse_timestamp(stored_at)
                    text = stored_at
                event = decoders[event_type](payload)
            except Exception:
                # Once more and slower, for the reason.
                moment, event = _decode_or_keep((sequence, event_type, payload, stored_at), codec, keep=keep)
                text = None
            yield new(StoredEvent, (sequence, event, moment))
        # Frees its memory for the next page, which is then in the processor's cache: a tenth faster.
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
