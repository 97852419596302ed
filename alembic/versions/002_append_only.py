"""The database itself refuses to change or delete a stored event."""

from alembic import context, op

revision = "002_append_only"
down_revision = "001_initial"
branch_labels = None
depends_on = None

REASON = "events is append-only: a stored event is never changed or deleted"


def upgrade() -> None:
    if context.get_context().dialect.name == "sqlite":
        for operation in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER events_refuse_{operation.lower()} BEFORE {operation} ON events "
                f"BEGIN SELECT RAISE(ABORT, '{REASON}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{REASON}' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()"
    )


def downgrade() -> None:
    if context.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER events_refuse_update")
        op.execute("DROP TRIGGER events_refuse_delete")
        return
    op.execute("DROP TRIGGER events_refuse_change ON events")
    op.execute("DROP FUNCTION events_refuse_change()")
