"""Deletions whose rows are hidden at once, and cleared in bounded steps."""

import sqlalchemy as sa
from alembic import op

revision = "010_bounded_deletions"
down_revision = "009_redaction"
branch_labels = None
depends_on = None

HIDDEN = (
    ("projection_message_chunks", "turn", "turn_id"),
    ("projection_open_tool_calls", "thread", "thread_id"),
    ("projection_approvals", "thread", "thread_id"),
    ("checkpoints", "thread", "thread_id"),
    ("projection_messages", "thread", "thread_id"),
    ("projection_commits", "thread", "thread_id"),
    ("projection_branches", "thread", "thread_id"),
    ("projection_turns", "thread", "thread_id"),
    ("projection_threads", "thread", "id"),
    ("projection_projects", "project", "id"),
)
"""The tables with hidden rows, leaves first, with the kind of the deletion that hides them and the column of its id."""


def upgrade() -> None:
    op.create_table(
        "projection_deletions",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("kind", "id", "sequence", name="pk_projection_deletions"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.execute(
        "DELETE FROM projection_message_chunks WHERE turn_id IN (SELECT turns.id FROM projection_turns AS turns "
        "JOIN projection_deletions AS deletions ON deletions.kind = 'thread' AND deletions.id = turns.thread_id "
        "AND deletions.sequence > turns.sequence)"
    )
    for table, kind, column in HIDDEN:
        op.execute(
            f"DELETE FROM {table} WHERE EXISTS (SELECT 1 FROM projection_deletions AS deletions "  # noqa: S608
            f"WHERE deletions.kind = '{kind}' AND deletions.id = {table}.{column} "
            f"AND deletions.sequence > {table}.sequence)"
        )
    op.drop_table("projection_deletions")
