"""How long the package's own transactions wait for the locks of a server."""

from sqlalchemy import ColumnElement, Connection, func, true

from peon.persistence.backends.engine import BUSY_TIMEOUT


def lock_timeout_of(connection: Connection) -> float | None:
    """Returns the seconds that its engine was made with; `None` for SQLite, and for an engine made elsewhere."""
    seconds: float | None = connection.get_execution_options().get(BUSY_TIMEOUT)
    return seconds


def limited(seconds: float | None) -> ColumnElement[bool]:
    """A condition that is true; from then on the transaction waits so long, where no other limit was set.

    As a condition it needs no round trip, and is dealt with before the rows that it is about are locked. What is set
    ends with the transaction, so that a pooler may give the session to somebody else.
    """
    if seconds is None:
        return true()
    milliseconds = max(1, round(seconds * 1000))  # 0 would be for ever
    limit_before = func.nullif(func.current_setting("lock_timeout"), "0")
    return func.coalesce(limit_before, func.set_config("lock_timeout", str(milliseconds), true())).is_not(None)
