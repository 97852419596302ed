"""What redactions have done, and to which events."""

import sqlalchemy as sa
from alembic import op

revision = "009_redaction"
down_revision = "008_read_model_indexes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "redactions",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("redacted_at", sa.Text, nullable=False),
        sa.Column("redacted_by", sa.Text, nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_redactions"),
    )
    op.create_table(
        "redacted_events",
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("redaction", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_redacted_events"),
    )


def downgrade() -> None:
    op.drop_table("redacted_events")
    op.drop_table("redactions")
