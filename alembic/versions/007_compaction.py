"""What a compaction has merged and removed, and its way past the triggers that keep the log append-only."""

import sqlalchemy as sa
from alembic import context, op

revision = "007_compaction"
down_revision = "006_read_model_lists"
branch_labels = None
depends_on = None

REASON = "events is append-only: a stored event is never changed or deleted"

# A compaction has written its row in this transaction; no other transaction sees that. The table is named with its
# schema, so that no temporary table takes its place. The numbers are compared as text, because PostgreSQL 12 cannot
# convert the number of a transaction to the type of xmin, which has 32 bits.
IS_COMPACTING = (
    "EXECUTE 'SELECT EXISTS (SELECT FROM ' || quote_ident(TG_TABLE_SCHEMA) || '.compaction "
    "WHERE CAST(xmin AS text) = CAST(mod(txid_current(), 4294967296) AS text))' INTO is_compacting"
)


def upgrade() -> None:
    compaction = op.create_table(
        "compaction",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_compaction"),
    )
    op.bulk_insert(compaction, [{"number": 1, "steps": 0}])
    op.create_table(
        "merged_events",
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("merged_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_merged_events"),
    )
    op.create_table(
        "removed_events",
        sa.Column("first_sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("removed_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("first_sequence", name="pk_removed_events"),
    )
    if context.get_context().dialect.name != "sqlite":
        replace_function(
            "DECLARE is_compacting boolean; BEGIN IF TG_OP <> 'TRUNCATE' THEN "
            f"{IS_COMPACTING}; IF is_compacting THEN RETURN NULL; END IF; END IF; "
        )


def replace_function(beginning: str) -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"{beginning}RAISE EXCEPTION '{REASON}' USING ERRCODE = 'restrict_violation'; END $$"
    )


def downgrade() -> None:
    if context.get_context().dialect.name != "sqlite":
        replace_function("BEGIN ")
    op.drop_table("removed_events")
    op.drop_table("merged_events")
    op.drop_table("compaction")
