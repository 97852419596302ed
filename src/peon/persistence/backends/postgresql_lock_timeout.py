"""How long the package's own transactions wait for locks of PostgreSQL."""

from sqlalchemy import ColumnElement, Connection, func, true

BUSY_TIMEOUT = "peon_busy_timeout"
"""Execution option of an engine: seconds that the package's own transactions wait for locks of the server."""


def lock_timeout_of(connection: Connection) -> float | None:
    """Returns the seconds that its engine was created with; `None` for an engine created elsewhere."""
    seconds: float | None = connection.get_execution_options().get(BUSY_TIMEOUT)
    return seconds


def limited(seconds: float | None) -> ColumnElement[bool]:
    """Returns a condition that is true, and limits the lock waits of the transaction unless a limit is set already.

    As a condition it needs no round trip of its own, and is evaluated before the rows are locked. The limit ends
    with the transaction, so that a pooler may give the session to another client.
    """
    if seconds is None:
        return true()
    milliseconds = max(1, round(seconds * 1000))  # 0 would switch the limit off
    limit_before = func.nullif(func.current_setting("lock_timeout"), "0")
    return func.coalesce(limit_before, func.set_config("lock_timeout", str(milliseconds), true())).is_not(None)
