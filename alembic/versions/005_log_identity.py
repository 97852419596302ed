"""The identity of the log, by which clients notice that a position is of another log."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "005_log_identity"
down_revision = "004_coordination"
branch_labels = None
depends_on = None


def upgrade() -> None:
    log_identity = op.create_table(
        "log_identity",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_log_identity"),
    )
    op.bulk_insert(log_identity, [{"number": 1, "identity": str(uuid4())}])


def downgrade() -> None:
    op.drop_table("log_identity")
