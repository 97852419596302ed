"""The record of redactions: who has replaced the content of which events, and when."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import Connection, bindparam, delete, func, select

from peon.persistence.backends.compiled import CompiledStatement, insert_into
from peon.persistence.log.query import EventQuery
from peon.persistence.schema import redacted_events, redactions

_INSERT_REDACTION = insert_into(redactions)
_INSERT_EVENT = insert_into(redacted_events)
_DELETE_EVENT = CompiledStatement(
    delete(redacted_events).where(redacted_events.c.sequence == bindparam("of_event")), ["of_event"]
)


class RecordedRedaction(NamedTuple):
    """What a redaction has done.

    Attributes:
        number: Counted from 1.
        redacted_at: When, in UTC, as ISO 8601.
        redacted_by: Who, as the caller said; empty if not.
        query: Which events were asked for, as JSON: a list of the query's items, with identifiers, types, and the names
            of the tags. The values of tags may be content, and are left out.
        rule: The qualified name of the rule.
        events: The number of events whose content was replaced.
    """

    number: int
    redacted_at: str
    redacted_by: str
    query: str
    rule: str
    events: int


def recorded_redactions(connection: Connection) -> list[RecordedRedaction]:
    """Returns the redactions, in order."""
    return [RecordedRedaction(*row) for row in connection.execute(select(redactions).order_by(redactions.c.number))]


def record_redaction(
    connection: Connection, sequences: Sequence[int], *, moment: str, by: str, query: EventQuery, rule: str
) -> None:
    """Records a redaction. The transaction holds the lock of the log."""
    number = connection.scalars(select(func.coalesce(func.max(redactions.c.number), 0) + 1)).one()
    _INSERT_REDACTION.run(connection, [(number, moment, by, without_values(query), rule, len(sequences))])
    _DELETE_EVENT.run(connection, [(sequence,) for sequence in sequences])
    _INSERT_EVENT.run(connection, [(sequence, number) for sequence in sequences])


def redacted_within(connection: Connection, first: int, last: int) -> set[int]:
    """Returns the sequences from `first` to `last` whose events were redacted."""
    within = redacted_events.c.sequence.between(first, last)
    return set(connection.scalars(select(redacted_events.c.sequence).where(within)))


def without_values(query: EventQuery) -> str:
    """Returns a query as JSON, without the values of its tags."""
    items: list[dict[str, Any]] = []
    for item in query.items():
        fields: dict[str, Any] = {
            "event_types": item.event_types,
            "project_id": item.project_id,
            "thread_id": item.thread_id,
            "turn_id": item.turn_id,
            "tags": [*dict(item.tags)],
        }
        items.append({name: value for name, value in fields.items() if value})
    return to_json(items).decode()
