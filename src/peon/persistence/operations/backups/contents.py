"""What a database or a backup holds: the numbers that are compared before and after."""

from contextlib import suppress
from typing import NamedTuple

from sqlalchemy import Connection, Engine, func, inspect, select

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.engine import create_reading_engine
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import PersistenceError, SchemaTooNew
from peon.persistence.migrations import current_revision, revisions
from peon.persistence.schema import events, subscription_positions


class Contents(NamedTuple):
    """What a database or a backup holds.

    Attributes:
        revision: The revision of its tables.
        events: The number of events.
        last_sequence: The sequence of the last event, 0 for an empty log.
        positions: The position of each durable subscription.
    """

    revision: str | None
    events: int
    last_sequence: int
    positions: dict[str, int]


def contents_of(connection: Connection) -> Contents:
    """Returns what the database of a connection holds now.

    Raises:
        PersistenceError: It has no log.
    """
    schema = backend_of(connection).schema_for_new_tables(connection)
    tables = inspect(connection).get_table_names(schema)
    if events.name not in tables:
        raise PersistenceError("it has no table events, so it is not a database of peon: name another one")
    count, last = connection.execute(
        select(func.count(), func.coalesce(func.max(events.c.sequence), 0)).select_from(events)
    ).one()
    positions: dict[str, int] = {}
    if subscription_positions.name in tables:
        columns = subscription_positions.c
        positions = {row.name: row.sequence for row in connection.execute(select(columns.name, columns.sequence))}
    return Contents(current_revision(connection), count, last, positions)


def events_up_to(engine: Engine, sequence: int) -> int:
    """Returns the number of events up to a sequence. No append changes it, as sequences follow the order of commits."""
    with backend_of(engine).consistent_reads(engine).connect() as connection:
        query = select(func.count()).select_from(events).where(events.c.sequence <= sequence)
        return connection.scalars(query).one()


def require_known_revision(contents: Contents, name: str) -> None:
    """Raises `SchemaTooNew` for a backup that a newer version has made, `PersistenceError` for one without revision."""
    if contents.revision is None:
        raise PersistenceError(
            f"{name} has no revision in the configured version table, so it is not a backup of this database: name "
            "another file"
        )
    if contents.revision not in revisions():
        raise SchemaTooNew(
            f"{name} is a backup at revision {contents.revision}, which this version of peon does not know (its newest "
            f"is {revisions()[-1]}): install a newer version of peon, or name another backup",
            database=name,
            revision=contents.revision,
            head=revisions()[-1],
        )


def previous_contents(engine: Engine) -> Contents | None:
    """Returns what the database to be replaced holds; `None` if it cannot be read."""
    reading = create_reading_engine(engine.url, access="read", version_table=version_table_of(engine))
    try:
        with suppress(PersistenceError), DriverErrors(engine), reading.connect() as connection:
            return contents_of(connection)
        return None
    finally:
        reading.dispose()
