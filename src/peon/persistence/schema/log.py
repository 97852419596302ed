"""The tables of the event log, and of what is recorded beside it.

The latter are the tag index, commands, subscriptions, compaction and redaction.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    select,
)

from peon.persistence.schema.metadata import metadata

# The log. Triggers (revision 002) refuse to change or delete a row. With AUTOINCREMENT, a number is never used again.
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

# The largest number that the column takes.
MAXIMUM_SEQUENCE = 2**63 - 1

# The end of the log, 0 if it is empty: the same time for any log, as it reads one entry of an index.
LAST_SEQUENCE = select(func.coalesce(func.max(events.c.sequence), literal_column("0")))

# On PostgreSQL, an append locks the only row, number 1, until it commits. SQLite has its own write lock.
append_lock = Table(
    "append_lock",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
)

# The identity of the log, in the only row, number 1. Each log has its own, and gets a new one when it is restored.
log_identity = Table(
    "log_identity",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("identity", Text, nullable=False),
)

# The index of tags: which events have a field, such as thread_id, with a value. It is derived from the log when a
# query first asks for the field. The type of an event counts as a field.
tags = Table(
    "tags",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    UniqueConstraint("name", "value"),
)
event_tags = Table(
    "event_tags",
    metadata,
    Column("tag_id", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
# The position up to which each field is indexed.
tag_positions = Table(
    "tag_positions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
)

# The events that a command has stored: their number, and the first one.
command_receipts = Table(
    "command_receipts",
    metadata,
    Column("command_id", Text, primary_key=True),
    Column("first_sequence", BigInteger, nullable=False),
    Column("events", Integer, nullable=False),
    Column("stored_at", Text, nullable=False),
)

# The position of each durable subscription.
subscription_positions = Table(
    "subscription_positions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("saved_at", Text, nullable=False),
)

# The number of steps that compactions have taken, in the only row, number 1. Each step updates the row. On PostgreSQL,
# the trigger lets a transaction change the log only if it has written this row.
compaction = Table(
    "compaction",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("steps", BigInteger, nullable=False),
)

# The events that a compaction has written: each holds what several events held, the last of them in its place.
merged_events = Table(
    "merged_events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("events", Integer, nullable=False),
    Column("merged_at", Text, nullable=False),
)

# The gaps that compactions have left in the log. No two rows are adjacent, so there are at most as many as events.
removed_events = Table(
    "removed_events",
    metadata,
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("removed_at", Text, nullable=False),
)

# What redactions have done. There is no content here: of the tags of a query, only the names. `redacted_by` is empty if
# the caller has not said who.
redactions = Table(
    "redactions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("redacted_at", Text, nullable=False),
    Column("redacted_by", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("events", BigInteger, nullable=False),
)

# The events whose content a redaction has replaced, each with the number of the last one.
redacted_events = Table(
    "redacted_events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("redaction", Integer, nullable=False),
)
