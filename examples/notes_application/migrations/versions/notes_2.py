"""Notes can be pinned."""

import sqlalchemy as sa
from alembic import op

revision = "notes_2"
down_revision = "notes_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("notes") as table:
        table.add_column(sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table("notes") as table:
        table.drop_column("pinned")
