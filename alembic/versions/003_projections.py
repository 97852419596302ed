"""The remaining tables and columns of the projections, the indexes for reading them, and their positions."""

import sqlalchemy as sa
from alembic import op

revision = "003_projections"
down_revision = "002_append_only"
branch_labels = None
depends_on = None

ORDERED = ("projection_projects", "projection_threads", "projection_turns", "projection_messages", "checkpoints")

INDEXES = {
    "projection_projects": [("sequence",)],
    "projection_threads": [("project_id", "sequence")],
    "projection_turns": [("thread_id", "sequence")],
    "projection_messages": [("turn_id", "sequence"), ("thread_id", "sequence")],
    "checkpoints": [("thread_id", "sequence"), ("turn_id",)],
}


def upgrade() -> None:
    for table in ORDERED:
        op.add_column(table, sa.Column("sequence", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("projection_messages", sa.Column("thread_id", sa.Text, nullable=False, server_default=""))
    op.execute(
        "UPDATE projection_messages SET thread_id = "
        "(SELECT thread_id FROM projection_turns WHERE projection_turns.id = projection_messages.turn_id)"
    )
    op.add_column("checkpoints", sa.Column("restored_at", sa.Text))
    for table, indexes in INDEXES.items():
        for columns in indexes:
            op.create_index(f"idx_{table}_{'_'.join(columns)}", table, list(columns))

    op.create_table(
        "projection_message_chunks",
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("delta", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("turn_id", "message_id", "sequence", name="pk_projection_message_chunks"),
        belongs_to("projection_message_chunks", "turn_id", "projection_turns"),
        sqlite_with_rowid=False,
    )

    op.create_table(
        "projection_approvals",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("requested_at", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Text),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projection_approvals"),
        belongs_to("projection_approvals", "thread_id", "projection_threads"),
        belongs_to("projection_approvals", "turn_id", "projection_turns"),
    )
    op.create_index(
        "idx_projection_approvals_status_thread_id_sequence",
        "projection_approvals",
        ["status", "thread_id", "sequence"],
    )
    op.create_index("idx_projection_approvals_thread_id", "projection_approvals", ["thread_id"])
    op.create_index("idx_projection_approvals_turn_id", "projection_approvals", ["turn_id"])

    op.create_table(
        "projection_commits",
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("committed_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_projection_commits"),
        belongs_to("projection_commits", "thread_id", "projection_threads"),
    )
    op.create_index("idx_projection_commits_thread_id_sequence", "projection_commits", ["thread_id", "sequence"])

    op.create_table(
        "projection_branches",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text),
        sa.Column("remote", sa.Text),
        sa.Column("pushed_at", sa.Text),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", "name", name="pk_projection_branches"),
        belongs_to("projection_branches", "thread_id", "projection_threads"),
    )
    op.create_index("idx_projection_branches_thread_id_sequence", "projection_branches", ["thread_id", "sequence"])

    op.create_table(
        "projection_selected_thread",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_projection_selected_thread"),
        belongs_to("projection_selected_thread", "thread_id", "projection_threads"),
    )
    op.create_index("idx_projection_selected_thread_thread_id", "projection_selected_thread", ["thread_id"])

    op.create_table(
        "projection_positions",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projection_positions"),
    )

    op.create_table(
        "projection_problems",
        sa.Column("projection", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("projection", "sequence", name="pk_projection_problems"),
    )


def belongs_to(table: str, column: str, parent: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=f"fk_{table}_{column}_{parent}", ondelete="CASCADE")


def downgrade() -> None:
    op.drop_table("projection_problems")
    op.drop_table("projection_positions")
    op.drop_table("projection_selected_thread")
    op.drop_table("projection_branches")
    op.drop_table("projection_commits")
    op.drop_table("projection_approvals")
    op.drop_table("projection_message_chunks")
    for table, indexes in INDEXES.items():
        for columns in indexes:
            op.drop_index(f"idx_{table}_{'_'.join(columns)}", table)
    op.drop_column("checkpoints", "restored_at")
    op.drop_column("projection_messages", "thread_id")
    for table in ORDERED:
        op.drop_column(table, "sequence")
