"""The tables at the newest revision. `alembic check` compares them with a database.

Columns are text wherever SQLite and PostgreSQL must agree to the byte: identifiers are UUIDs in their 36-character
form, times are ISO 8601 in UTC with microseconds and a `Z` (a fixed width, so that they sort as text), JSON is kept
as it was written.
"""

from peon.persistence.schema.log import (
    LAST_SEQUENCE,
    MAXIMUM_SEQUENCE,
    append_lock,
    command_receipts,
    compaction,
    event_tags,
    events,
    log_identity,
    merged_events,
    redacted_events,
    redactions,
    removed_events,
    subscription_positions,
    tag_positions,
    tags,
)
from peon.persistence.schema.metadata import metadata
from peon.persistence.schema.projections import (
    projection_positions,
    projection_problems,
)
from peon.persistence.schema.read_model import (
    checkpoints,
    complete_partial_indexes,
    projection_approvals,
    projection_branches,
    projection_commits,
    projection_deletions,
    projection_message_chunks,
    projection_messages,
    projection_open_tool_calls,
    projection_projects,
    projection_selected_thread,
    projection_threads,
    projection_turns,
)
from peon.persistence.schema.settings import (
    settings,
)

__all__ = [
    "LAST_SEQUENCE",
    "MAXIMUM_SEQUENCE",
    "append_lock",
    "checkpoints",
    "command_receipts",
    "compaction",
    "complete_partial_indexes",
    "event_tags",
    "events",
    "log_identity",
    "merged_events",
    "metadata",
    "projection_approvals",
    "projection_branches",
    "projection_commits",
    "projection_deletions",
    "projection_message_chunks",
    "projection_messages",
    "projection_open_tool_calls",
    "projection_positions",
    "projection_problems",
    "projection_projects",
    "projection_selected_thread",
    "projection_threads",
    "projection_turns",
    "redacted_events",
    "redactions",
    "removed_events",
    "settings",
    "subscription_positions",
    "tag_positions",
    "tags",
]
