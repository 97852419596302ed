"""The tables of the read model, filled by the projection of the domain."""

from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, ForeignKey, Index, Integer, Table, Text, TextClause, text

from peon.persistence.schema.metadata import USED_TO_APPLY, metadata

# `sequence` is the place of the event that created the row; lists are in its order. It has a default in tables that
# are older than the column.


def _sequence() -> Column[int]:
    return Column("sequence", BigInteger, nullable=False, server_default=text("0"))


_PARTIAL_INDEXES: list[tuple[Index, TextClause]] = []


def _partial(name: str, rows: str, *columns: ColumnElement[Any]) -> None:
    """Adds an index of few rows, which costs nothing for the others. A query must contain the condition literally."""
    condition = text(rows)
    _PARTIAL_INDEXES.append((Index(name, *columns, sqlite_where=condition), condition))


def complete_partial_indexes() -> None:
    """Gives partial indexes their condition on PostgreSQL; its backend calls this when it is loaded.

    SQLAlchemy loads its whole dialect of PostgreSQL for the keyword `postgresql_where`. That is a seventh of what
    `peon status --check` loads for an SQLite file.
    """
    for index, condition in _PARTIAL_INDEXES:
        index.dialect_kwargs["postgresql_where"] = condition


projection_projects = Table(
    "projection_projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    _sequence(),
)
Index(None, projection_projects.c.sequence)

projection_threads = Table(
    "projection_threads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", ForeignKey("projection_projects.id", ondelete="CASCADE"), nullable=False),
    Column("title", Text),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("runtime_mode", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    _sequence(),
    # Kept here, so that a list of threads reads no turns and no messages.
    Column("last_sequence", BigInteger, nullable=False, server_default=text("0")),  # of the last event that is no chunk
    Column("turn_count", Integer, nullable=False, server_default=text("0")),
    Column("message_count", Integer, nullable=False, server_default=text("0")),
    Column("first_words", Text),
)
Index(None, projection_threads.c.project_id, projection_threads.c.sequence)
Index(None, projection_threads.c.last_sequence)
Index(None, projection_threads.c.project_id, projection_threads.c.last_sequence)

_partial("idx_unfinished_threads", "status IN ('running', 'awaiting_approval')", projection_threads.c.sequence)

projection_turns = Table(
    "projection_turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("started_at", Text, nullable=False),
    Column("completed_at", Text),
    _sequence(),
)
Index("idx_turns_thread", projection_turns.c.thread_id, projection_turns.c.sequence)
_partial("idx_running_turns", "status = 'running'", projection_turns.c.sequence)

projection_messages = Table(
    "projection_messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    _sequence(),
    Column("thread_id", Text, nullable=False, server_default="", info={USED_TO_APPLY: True}),  # the thread of its turn
)
Index("idx_messages_turn", projection_messages.c.turn_id, projection_messages.c.sequence)
Index(None, projection_messages.c.thread_id, projection_messages.c.sequence)

# Text that is still being streamed, as JSON strings, so that a chunk costs the same for any length of the message.
# When the turn ends, it is joined to the content of the message. There is one row for each event, so that a rebuild
# gives the same rows; the key begins with the turn, so that the rows of a turn are one range.
projection_message_chunks = Table(
    "projection_message_chunks",
    metadata,
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("delta", Text, nullable=False),
    sqlite_with_rowid=False,
)

# The calls of tools that have no result yet.
projection_open_tool_calls = Table(
    "projection_open_tool_calls",
    metadata,
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # of the message with the call
    Column("turn_id", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("tool_call_id", Text, nullable=False),
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), nullable=False),
    Column("git_ref", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    _sequence(),
    Column("restored_at", Text),
)
Index(None, checkpoints.c.thread_id, checkpoints.c.sequence)
Index(None, checkpoints.c.turn_id)

projection_approvals = Table(
    "projection_approvals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text),
    Column("requested_at", Text, nullable=False),
    Column("decided_at", Text),
    Column("sequence", BigInteger, nullable=False),
)
Index(None, projection_approvals.c.thread_id)
Index(None, projection_approvals.c.turn_id)
_partial("idx_pending_approvals", "status = 'pending'", projection_approvals.c.sequence)
_partial(
    "idx_pending_approvals_thread_id",
    "status = 'pending'",
    projection_approvals.c.thread_id,
    projection_approvals.c.sequence,
)

projection_commits = Table(
    "projection_commits",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("hash", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("committed_at", Text, nullable=False),
)
Index(None, projection_commits.c.thread_id, projection_commits.c.sequence)

projection_branches = Table(
    "projection_branches",
    metadata,
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("created_at", Text),
    Column("remote", Text),
    Column("pushed_at", Text),
    Column("sequence", BigInteger, nullable=False),
)
Index(None, projection_branches.c.thread_id, projection_branches.c.sequence)

# At most one row, number 1.
projection_selected_thread = Table(
    "projection_selected_thread",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
)
Index(None, projection_selected_thread.c.thread_id)

# What was deleted and is not cleared yet: rows of a project, thread or turn that are older than the event `sequence`.
# Readers do not see them, and the identifier can be used again. See `orchestration/deletions.py`.
projection_deletions = Table(
    "projection_deletions",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
