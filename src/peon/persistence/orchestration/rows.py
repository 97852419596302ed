"""Converts rows of the read model's tables into values of the domain."""

import re
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, literal_column, select

from peon.orchestration import (
    Approval,
    Branch,
    Checkpoint,
    Commit,
    Message,
    Project,
    Thread,
    ThreadSummary,
    ToolCallMessage,
    Turn,
)
from peon.orchestration.model import Value
from peon.persistence import schema
from peon.persistence.errors import PersistenceError
from peon.persistence.orchestration.visibility import is_visible
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.runtime.garbage_collection import garbage_collection_paused

ValueT = TypeVar("ValueT", bound=Value)

TABLES: dict[type[Value], Table] = {
    Project: schema.projection_projects,
    Thread: schema.projection_threads,
    ThreadSummary: schema.projection_threads,
    Turn: schema.projection_turns,
    Message: schema.projection_messages,
    ToolCallMessage: schema.projection_messages,
    Checkpoint: schema.checkpoints,
    Approval: schema.projection_approvals,
    Commit: schema.projection_commits,
    Branch: schema.projection_branches,
}

# A literal, because a prepared statement of PostgreSQL does not use the index of pending approvals for a parameter.
PENDING = schema.projection_approvals.c.status == literal_column("'pending'")

_COMPUTED: dict[tuple[type[Value], str], ColumnElement[int]] = {
    (ThreadSummary, "pending_approvals"): select(func.count())
    .where(
        PENDING,
        schema.projection_approvals.c.thread_id == schema.projection_threads.c.id,
        schema.projection_approvals.c.sequence > schema.projection_threads.c.sequence,  # not of a deleted thread
    )
    .scalar_subquery()
    .label("pending_approvals")
}
"""The fields that are no columns."""

_JSON = {"content", "detail"}
"""The columns that hold JSON."""

_KEYS_AT_ONCE = 500

MAXIMUM_LIMIT = 2**31
"""No list has more members, and every database takes this number."""

_messages, _chunks = schema.projection_messages, schema.projection_message_chunks
_CHUNKS = (
    select(_chunks.c.message_id, _chunks.c.turn_id, _chunks.c.sequence, _chunks.c.delta)
    .join(_messages, (_chunks.c.turn_id == _messages.c.turn_id) & (_chunks.c.message_id == _messages.c.id))
    .where(_messages.c.id.in_(bindparam("keys", expanding=True)), _chunks.c.sequence > _messages.c.sequence)
)


def read_values(
    connection: Connection,
    model: type[ValueT],
    *conditions: ColumnElement[bool],
    order: ColumnElement[int] | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> list[ValueT]:
    """Returns the values of the rows that meet all conditions, in the order of their creation or of another column."""
    table = TABLES[model]
    order = table.c.sequence if order is None else order
    columns = [_COMPUTED[model, name] if (model, name) in _COMPUTED else table.c[name] for name in model.model_fields]
    query = select(*columns).where(*conditions).order_by(order.desc() if newest_first else order)
    if limit is not None:
        query = query.limit(min(limit, MAXIMUM_LIMIT))
    with garbage_collection_paused(connection.dialect):
        found = connection.execute(query).mappings()
        rows = [dict(row) for row in with_pauses(found, connection.dialect)]
        for column in _JSON & rows[0].keys() if rows else ():
            for row in with_pauses(rows, connection.dialect):
                row[column] = _parse(table, row, column)
        if model is Message:
            _add_streamed_text(connection, rows)
        return [_to_value(model, row) for row in with_pauses(rows, connection.dialect)]


def place_of(connection: Connection, model: type[Value], *conditions: ColumnElement[bool]) -> int:
    """Returns the sequence of the member of a list that meets all conditions, by which lists are ordered.

    Raises:
        LookupError: No member meets them.
    """
    place: int | None = connection.scalar(
        select(TABLES[model].c.sequence).where(*conditions, is_visible(TABLES[model]))
    )
    if place is None:
        noun = re.sub("(?<=[a-z])(?=[A-Z])", " ", model.__name__).lower()
        raise LookupError(f"after: that {noun} does not exist, or was deleted; read from the beginning again")
    return place


def read_identifier(text: str) -> UUID:
    """Returns the identifier of the selected thread."""
    try:
        return UUID(text)
    except ValueError:
        raise _damaged(schema.projection_selected_thread, {"number": 1}) from None


def _add_streamed_text(connection: Connection, messages: list[dict[str, Any]]) -> None:
    """Adds the chunks that are not joined yet: of running turns, and those that came after the end of a turn."""
    texts = {
        message["id"]: message["content"]
        for message in messages
        if isinstance(message["content"], dict) and isinstance(message["content"].get("text"), str)
    }
    for number in range(0, len(texts), _KEYS_AT_ONCE):
        keys = list(texts)[number : number + _KEYS_AT_ONCE]
        for message_id, turn_id, sequence, delta in sorted(connection.execute(_CHUNKS, {"keys": keys}).all()):
            try:
                texts[message_id]["text"] += from_json(delta)
            except (ValueError, TypeError):
                row = {"turn_id": turn_id, "message_id": message_id, "sequence": sequence}
                raise _damaged(_chunks, row) from None


def _parse(table: Table, row: dict[str, Any], column: str) -> Any:
    try:
        return from_json(row[column])
    except ValueError:
        raise _damaged(table, row) from None


def _to_value(model: type[ValueT], row: dict[str, Any]) -> ValueT:
    try:
        return model.model_validate(row)
    except ValidationError:
        raise _damaged(TABLES[model], row) from None


def _damaged(table: Table, row: dict[str, Any]) -> PersistenceError:
    key = "/".join(str(row[column.name]) for column in table.primary_key)
    return PersistenceError(
        f"row {key} of {table.name} is damaged: projections.verify() shows how, and projections.rebuild() repairs it"
    )
