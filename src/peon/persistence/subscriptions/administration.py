"""Lists, moves and removes the saved positions of durable subscriptions, for operators."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, select, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.errors import PersistenceError, PositionBeyondEnd
from peon.persistence.schema import LAST_SEQUENCE, subscription_positions
from peon.persistence.schema.timestamps import format_timestamp

_columns = subscription_positions.c


class SubscriptionPosition(NamedTuple):
    """The saved position of a durable subscription.

    Attributes:
        name: The name of the subscription.
        sequence: The sequence of the last event that its consumer has handled.
        saved_at: When it was saved, as text in UTC.
    """

    name: str
    sequence: int
    saved_at: str


def saved_positions(connection: Connection) -> list[SubscriptionPosition]:
    """Returns the saved positions of all durable subscriptions, by name."""
    query = select(_columns.name, _columns.sequence, _columns.saved_at).order_by(_columns.name)
    return [SubscriptionPosition(*row) for row in connection.execute(query)]


def set_position(engine: Engine, name: str, sequence: int) -> None:
    """Moves a durable subscription: events after `sequence` are delivered next.

    Raises:
        PositionBeyondEnd: The sequence is beyond the end of the log.
        PersistenceError: A consumer of the name is active, or there is no such subscription.
        StoreUnavailable: The database is locked, read-only, full or damaged.
    """

    def move(connection: Connection) -> int:
        end = connection.scalars(LAST_SEQUENCE).one()
        if sequence > end:
            raise PositionBeyondEnd(database_name(engine), sequence, end)
        saved = {"sequence": sequence, "saved_at": format_timestamp(datetime.now(UTC))}
        return connection.execute(update(subscription_positions).where(_columns.name == name).values(saved)).rowcount

    _change(engine, name, move)


def delete_position(engine: Engine, name: str) -> None:
    """Removes the saved position of a durable subscription, which then begins again where its consumer says.

    Raises:
        PersistenceError: See `set_position`.
        StoreUnavailable: See `set_position`.
    """
    _change(
        engine,
        name,
        lambda connection: connection.execute(delete(subscription_positions).where(_columns.name == name)).rowcount,
    )


def _change(engine: Engine, name: str, work: Callable[[Connection], int]) -> None:
    """Changes the row of a name while no consumer of it is active: one that is would meet `SubscriptionConflict`."""
    driver_errors, backend = DriverErrors(engine, expects_tables=True), backend_of(engine)
    with driver_errors, backend.consistent_reads(engine).connect() as connection:
        lock = backend.consumer_lock(connection, name)
    with driver_errors:
        is_acquired = lock.acquire()
    if not is_acquired:
        raise PersistenceError(
            f"a consumer of subscription {name!r} is active in {database_name(engine)}: stop it, and try again"
        )
    try:
        changed = in_own_transaction(engine, driver_errors, work)
    finally:
        lock.release()
    if not changed:
        raise PersistenceError(f"there is no subscription {name!r} in {database_name(engine)}")
