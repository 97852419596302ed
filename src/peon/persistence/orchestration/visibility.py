"""Which rows of the read model readers see: not those of a deletion that are still to be cleared.

A row of a deleted project, thread or turn is older than the event that has deleted it, and both sequences are stored.
Lists compare with one number, so that they skip any number of such rows in the index.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    ScalarSelect,
    Table,
    case,
    exists,
    false,
    func,
    literal_column,
    select,
)

from peon.persistence.schema import (
    checkpoints,
    projection_approvals,
    projection_branches,
    projection_commits,
    projection_deletions,
    projection_message_chunks,
    projection_messages,
    projection_open_tool_calls,
    projection_projects,
    projection_threads,
    projection_turns,
)

PROJECT, THREAD, TURN = "project", "thread", "turn"
"""The kinds of deletions. That of a turn is its second creation, under the identifier of a deleted one."""

Identifier = Column[Any] | BindParameter[Any] | ScalarSelect[Any] | str

_KINDS: dict[str, tuple[str, str]] = {
    projection_projects.name: (PROJECT, "id"),
    projection_threads.name: (THREAD, "id"),
    projection_turns.name: (THREAD, "thread_id"),
    projection_messages.name: (THREAD, "thread_id"),
    projection_open_tool_calls.name: (THREAD, "thread_id"),
    projection_approvals.name: (THREAD, "thread_id"),
    checkpoints.name: (THREAD, "thread_id"),
    projection_commits.name: (THREAD, "thread_id"),
    projection_branches.name: (THREAD, "thread_id"),
}
"""The tables with rows that a deletion can hide: its kind, and the column with its identifier."""


def deleted_up_to(kind: str, identifier: Identifier, deletions: Table = projection_deletions) -> ColumnElement[int]:
    """Returns the sequence below which rows of a project or thread are deleted; 0 if none is left to clear."""
    # The maximum instead of EXISTS, which PostgreSQL turns into a join that may sort a whole table for a page.
    # Literals, because compiled statements have only the parameters that their rows give.
    of_kind = deletions.c.kind == literal_column(f"'{kind}'")
    newest = select(func.max(deletions.c.sequence)).where(of_kind, deletions.c.id == identifier)
    if isinstance(identifier, Column):
        newest = newest.correlate(identifier.table)
    return func.coalesce(newest.scalar_subquery(), literal_column("0"))


def is_visible(table: Table) -> ColumnElement[bool]:
    """Returns whether readers see a row; to look at few rows, because it looks at the deletions for each."""
    kind, column = _KINDS[table.name]
    return table.c.sequence >= deleted_up_to(kind, table.c[column])


def visible_if_known(connection: Connection, table: Table) -> list[ColumnElement[bool]]:
    """Like `is_visible`, as a list of conditions; it is empty in a database of an older revision."""
    has_deletions = connection.dialect.has_table(connection, projection_deletions.name)
    return [is_visible(table)] if has_deletions else []


def of_thread(table: Table, thread_id: str) -> ColumnElement[bool]:
    """Returns which rows of a table belong to a thread, for readers."""
    return (table.c.thread_id == thread_id) & (table.c.sequence >= deleted_up_to(THREAD, thread_id))


def of_turn(table: Table, turn_id: str) -> ColumnElement[bool]:
    """Returns which rows of a table belong to a turn, for readers."""
    turns = projection_turns
    deleted = deleted_up_to(THREAD, turns.c.thread_id)
    # Rows that are older than the turn are those of a deleted one, whose identifier it has.
    oldest = case((deleted > turns.c.sequence, deleted), else_=turns.c.sequence)
    return (table.c.turn_id == turn_id) & (
        table.c.sequence >= select(oldest).where(turns.c.id == turn_id).scalar_subquery()
    )


def visible_rows(tables: Mapping[str, Table]) -> dict[str, ColumnElement[bool]]:
    """Returns the condition of the rows that readers see, by the name of the table.

    Args:
        tables: The tables of the projection by name, in any schema.
    """
    deletions = tables[projection_deletions.name]
    conditions = {
        name: tables[name].c.sequence >= deleted_up_to(kind, tables[name].c[column], deletions)
        for name, (kind, column) in _KINDS.items()
    }
    chunks, messages = tables[projection_message_chunks.name], tables[projection_messages.name]
    conditions[chunks.name] = exists().where(
        messages.c.id == chunks.c.message_id,
        messages.c.turn_id == chunks.c.turn_id,
        messages.c.sequence < chunks.c.sequence,
        conditions[messages.name],
    )
    conditions[deletions.name] = false()
    return conditions
