"""What `peon status --json` prints."""

from datetime import datetime

from pydantic import BaseModel

from peon.cli.subscription_document import Subscription


class LogStatus(BaseModel):
    """The log. `events` is computed from the sequences, without those that a compaction removed.

    Events that were removed by hand are included, and `events_last_day` includes both.

    `events_a_day` is the average from the first to the last event, null for less than a day; `events_last_day` are
    those of the last 24 hours.
    """

    events: int
    first_sequence: int | None
    last_sequence: int
    first_stored_at: datetime | None
    last_stored_at: datetime | None
    events_a_day: float | None
    events_last_day: int


class StorageStatus(BaseModel):
    """Sizes in bytes; null for what is not known, or was not measured."""

    database: int
    write_ahead_log: int | None
    free: int | None
    log: int | None
    projections: int | None
    other_tables: int | None
    indexes: int | None


class ProjectionStatus(BaseModel):
    """A projection: its version, its position, the events after it, and those that it could not apply."""

    name: str
    version: int
    position: int
    lag: int
    problems: int


class Check(BaseModel):
    """A value that was compared with its limit."""

    name: str
    found: str
    limit: str
    ok: bool


class Status(BaseModel):
    """The state of a database. With --check, only what the checks need; `checks` is null without it.

    `users` are the other processes that have the file open, or the other sessions of the server.
    """

    database: str
    backend: str
    version: str
    revision: str | None
    newest_revision: str
    log: LogStatus
    storage: StorageStatus
    projections: list[ProjectionStatus]
    subscriptions: list[Subscription]
    running_turns: int | None
    pending_approvals: int | None
    users: list[str] | None
    checks: list[Check] | None
