"""The tables, as the newest revision leaves them. Alembic compares them with a database: `alembic check`.

Text everywhere that SQLite and PostgreSQL must agree to the byte: identifiers are UUIDs in their 36-character
form, times are ISO 8601 in UTC with microseconds and a `Z` (fixed width, so that they sort as text), JSON is
kept as it was written.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# The log. Triggers (revision 002) refuse to change or delete a row. AUTOINCREMENT: a number is never used again.
events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("event_type", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("stored_at", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index("idx_events_sequence", events.c.sequence)

projection_projects = Table(
    "projection_projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

projection_threads = Table(
    "projection_threads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", ForeignKey("projection_projects.id", ondelete="CASCADE"), nullable=False),
    Column("title", Text),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("runtime_mode", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
)

projection_turns = Table(
    "projection_turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("started_at", Text, nullable=False),
    Column("completed_at", Text),
)
Index("idx_turns_thread", projection_turns.c.thread_id)

projection_messages = Table(
    "projection_messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)
Index("idx_messages_turn", projection_messages.c.turn_id)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("thread_id", ForeignKey("projection_threads.id", ondelete="CASCADE"), nullable=False),
    Column("turn_id", ForeignKey("projection_turns.id", ondelete="CASCADE"), nullable=False),
    Column("git_ref", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
