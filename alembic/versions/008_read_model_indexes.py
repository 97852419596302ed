"""One index of the messages of a turn, and one of the turns of a thread, instead of two of each.

SQLite creates the indexes again: 2 s for a million messages, during which no process can write. PostgreSQL renames
them, which takes no time; it waits for the transactions that have read the two tables, and readers wait for it.
"""

from alembic import context, op

revision = "008_read_model_indexes"
down_revision = "007_compaction"
branch_labels = None
depends_on = None

# Each index that stays gets the columns of the one that is dropped, which begin with its own.
INDEXES = [
    ("idx_turns_thread", "projection_turns", "thread_id", "idx_projection_turns_thread_id_sequence"),
    ("idx_messages_turn", "projection_messages", "turn_id", "idx_projection_messages_turn_id_sequence"),
]


def is_sqlite() -> bool:
    return context.get_context().dialect.name == "sqlite"


def upgrade() -> None:
    for kept, table, column, dropped in INDEXES:
        op.drop_index(kept, table)
        if is_sqlite():
            op.drop_index(dropped, table)  # first, so that the new one reuses its pages
            op.create_index(kept, table, [column, "sequence"])
        else:
            op.execute(f"ALTER INDEX {dropped} RENAME TO {kept}")  # which takes no time, however many rows there are


def downgrade() -> None:
    for kept, table, column, dropped in reversed(INDEXES):
        if is_sqlite():
            op.drop_index(kept, table)
            op.create_index(dropped, table, [column, "sequence"])
        else:
            op.execute(f"ALTER INDEX {kept} RENAME TO {dropped}")
        op.create_index(kept, table, [column])
