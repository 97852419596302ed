"""The log, its projections, git checkpoints and settings."""

import sqlalchemy as sa
from alembic import op

revision = "001_initial"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("stored_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_events_sequence", "events", ["sequence"])

    op.create_table(
        "projection_projects",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projection_projects"),
    )

    op.create_table(
        "projection_threads",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("runtime_mode", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projection_threads"),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projection_projects.id"],
            name="fk_projection_threads_project_id_projection_projects",
            ondelete="CASCADE",
        ),
    )

    op.create_table(
        "projection_turns",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("completed_at", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_projection_turns"),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["projection_threads.id"],
            name="fk_projection_turns_thread_id_projection_threads",
            ondelete="CASCADE",
        ),
    )
    op.create_index("idx_turns_thread", "projection_turns", ["thread_id"])

    op.create_table(
        "projection_messages",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projection_messages"),
        sa.ForeignKeyConstraint(
            ["turn_id"],
            ["projection_turns.id"],
            name="fk_projection_messages_turn_id_projection_turns",
            ondelete="CASCADE",
        ),
    )
    op.create_index("idx_messages_turn", "projection_messages", ["turn_id"])

    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("git_ref", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["projection_threads.id"],
            name="fk_checkpoints_thread_id_projection_threads",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"],
            ["projection_turns.id"],
            name="fk_checkpoints_turn_id_projection_turns",
            ondelete="CASCADE",
        ),
    )

    op.create_table(
        "settings",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
    )


def downgrade() -> None:
    op.drop_table("settings")
    op.drop_table("checkpoints")
    op.drop_index("idx_messages_turn", "projection_messages")
    op.drop_table("projection_messages")
    op.drop_index("idx_turns_thread", "projection_turns")
    op.drop_table("projection_turns")
    op.drop_table("projection_threads")
    op.drop_table("projection_projects")
    op.drop_index("idx_events_sequence", "events")
    op.drop_table("events")
