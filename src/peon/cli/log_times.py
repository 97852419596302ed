"""Finds places in the log by time."""

from datetime import UTC, datetime

from sqlalchemy import Connection, select

from peon.persistence.schema import LAST_SEQUENCE, events
from peon.persistence.schema.timestamps import format_timestamp

_FIRST_FROM = select(events.c.sequence, events.c.stored_at).order_by(events.c.sequence).limit(1)


def first_at(connection: Connection, moment: datetime) -> int:
    """Returns the first sequence that was stored at a moment or later; the number after the last one if none was.

    It looks at about 25 rows of a log of any length, because times rise with the sequences. If a clock was set back
    in between, it finds one of the places where the times pass the moment.
    """
    wanted = format_timestamp(moment.astimezone(UTC))
    low, high = 1, connection.scalars(LAST_SEQUENCE).one() + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(_FIRST_FROM.where(events.c.sequence >= middle)).first()
        if row is None or str(row.stored_at) >= wanted:
            high = middle
        else:
            low = row.sequence + 1
    return low
