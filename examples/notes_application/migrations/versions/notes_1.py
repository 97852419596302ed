"""Notes about threads."""

import sqlalchemy as sa
from alembic import op

revision = "notes_1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("thread_id", sa.Uuid(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
    )
    op.create_index("ix_notes_thread_id", "notes", ["thread_id"])


def downgrade() -> None:
    op.drop_table("notes")
