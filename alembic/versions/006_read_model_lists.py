"""Lists over all threads: their activity, numbers of turns and messages, and what a killed application leaves open."""

import sqlalchemy as sa
from alembic import op

revision = "006_read_model_lists"
down_revision = "005_log_identity"
branch_labels = None
depends_on = None

COUNTS = ("turn_count", "message_count")

REPLACED_INDEX = "idx_projection_approvals_status_thread_id_sequence"

PARTIAL_INDEXES = {
    "idx_unfinished_threads": ("projection_threads", ["sequence"], "status IN ('running', 'awaiting_approval')"),
    "idx_running_turns": ("projection_turns", ["sequence"], "status = 'running'"),
    "idx_pending_approvals": ("projection_approvals", ["sequence"], "status = 'pending'"),
    "idx_pending_approvals_thread_id": ("projection_approvals", ["thread_id", "sequence"], "status = 'pending'"),
}


def upgrade() -> None:
    # The first start of the new version fills the columns and the table from the log.
    op.add_column(
        "projection_threads", sa.Column("last_sequence", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    for column in COUNTS:
        op.add_column("projection_threads", sa.Column(column, sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("projection_threads", sa.Column("first_words", sa.Text))
    op.create_index("idx_projection_threads_last_sequence", "projection_threads", ["last_sequence"])
    op.create_index(
        "idx_projection_threads_project_id_last_sequence", "projection_threads", ["project_id", "last_sequence"]
    )
    op.drop_index(REPLACED_INDEX, "projection_approvals")
    for name, (table, columns, rows) in PARTIAL_INDEXES.items():
        op.create_index(name, table, columns, sqlite_where=sa.text(rows), postgresql_where=sa.text(rows))
    op.create_table(
        "projection_open_tool_calls",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("tool_call_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", "sequence", name="pk_projection_open_tool_calls"),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["projection_threads.id"],
            name="fk_projection_open_tool_calls_thread_id_projection_threads",
            ondelete="CASCADE",
        ),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("projection_open_tool_calls")
    for name, (table, *_) in PARTIAL_INDEXES.items():
        op.drop_index(name, table)
    op.create_index(REPLACED_INDEX, "projection_approvals", ["status", "thread_id", "sequence"])
    op.drop_index("idx_projection_threads_project_id_last_sequence", "projection_threads")
    op.drop_index("idx_projection_threads_last_sequence", "projection_threads")
    for column in ("first_words", *reversed(COUNTS), "last_sequence"):
        op.drop_column("projection_threads", column)
