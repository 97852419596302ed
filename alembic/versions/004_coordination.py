"""Coordination of writers and readers: the order of appends, append conditions, commands, subscriptions."""

import sqlalchemy as sa
from alembic import context, op

revision = "004_coordination"
down_revision = "003_projections"
branch_labels = None
depends_on = None


def upgrade() -> None:
    append_lock = op.create_table(
        "append_lock",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("number", name="pk_append_lock"),
    )
    op.bulk_insert(append_lock, [{"number": 1}])

    op.create_table(
        "tags",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tags"),
        sa.UniqueConstraint("name", "value", name="uq_tags_name_value"),
    )
    op.create_table(
        "event_tags",
        sa.Column("tag_id", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tag_id", "sequence", name="pk_event_tags"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tag_positions",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tag_positions"),
    )

    op.create_table(
        "command_receipts",
        sa.Column("command_id", sa.Text, nullable=False),
        sa.Column("first_sequence", sa.BigInteger, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("stored_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("command_id", name="pk_command_receipts"),
    )

    op.create_table(
        "subscription_positions",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("saved_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_subscription_positions"),
    )

    if context.get_context().dialect.name != "sqlite":
        op.execute(
            "CREATE FUNCTION events_notify() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN PERFORM pg_notify('peon_events', TG_TABLE_SCHEMA); RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_notify AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION events_notify()"
        )


def downgrade() -> None:
    if context.get_context().dialect.name != "sqlite":
        op.execute("DROP TRIGGER events_notify ON events")
        op.execute("DROP FUNCTION events_notify()")
    op.drop_table("subscription_positions")
    op.drop_table("command_receipts")
    op.drop_table("tag_positions")
    op.drop_table("event_tags")
    op.drop_table("tags")
    op.drop_table("append_lock")
