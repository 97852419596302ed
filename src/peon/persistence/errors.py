"""The errors of the package. Each message says what happened, to which thing, and what to do; none has a payload.

    PersistenceError
    ├── EventEncodeError          an event cannot be stored so that it reads back equal
    ├── EventDecodeError          a stored event cannot be decoded
    ├── ConcurrencyError          an append condition failed
    ├── PositionBeyondEnd         a position is higher than the last event of the log
    ├── CommandConflict           a command identifier was used for other events
    ├── CommandEventsRemoved      the events of a repeated command were removed from the log
    │   └── CommandEventsMerged   a compaction has merged the events of a repeated command
    ├── SubscriptionConflict      the position of a durable subscription was moved by another consumer
    ├── ProjectionError           an event contradicts the projections
    ├── ProjectionsOutOfDate      the projections are not those that this version of the code has built
    │   └── ProjectionsTooNew     a newer version has built a projection
    ├── SettingError              a setting has a wrong value
    ├── SchemaError               the tables are not those that this version needs
    │   ├── SchemaTooNew          a newer version has migrated the database
    │   ├── SchemaOutOfDate       the database must be migrated first
    │   └── MigrationFailed       a migration failed and was rolled back
    ├── DamagedFile               an exported log or a backup was cut, altered or damaged
    └── StoreUnavailable          the database cannot be used now

`peon.ConfigError`, for a wrong configuration, is a `ValueError` of its own.
"""

from datetime import datetime
from typing import Any
from uuid import UUID


class PersistenceError(Exception):
    """Base class of all errors of `peon.persistence`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), *self.args), self.__dict__


def _restore(kind: type[PersistenceError], *arguments: object) -> PersistenceError:
    """Creates a copied or unpickled error without its constructor, which takes other arguments than the message."""
    return kind.__new__(kind, *arguments)


class EventEncodeError(PersistenceError):
    """An event cannot be stored so that it reads back equal. Nothing of its batch was stored.

    Attributes:
        index: The event's place in the batch, counted from 0.
        event_type: The name of its class.
        reason: What is wrong with it.
    """

    def __init__(self, index: int, event_type: str, reason: str) -> None:
        super().__init__(f"event {index} of the batch ({event_type}) cannot be stored: {reason}")
        self.index = index
        self.event_type = event_type
        self.reason = reason


class EventDecodeError(PersistenceError):
    """A stored event cannot be decoded. With `undecodable=UndecodableEvent`, a read yields it as it is.

    Attributes:
        sequence: Its place in the log.
        event_type: The value of its `event_type` column.
        reason: What is wrong with it.
    """

    def __init__(self, sequence: int, event_type: str, reason: str) -> None:
        super().__init__(
            f"event {sequence} ({event_type}) cannot be decoded: {reason}. "
            "Add an upcaster if an older version wrote it, or read with undecodable=UndecodableEvent."
        )
        self.sequence = sequence
        self.event_type = event_type
        self.reason = reason


class ConcurrencyError(PersistenceError):
    """The append condition failed. Nothing of the batch was stored.

    Attributes:
        sequence: The first event that matches the condition.
        after: The position up to which the log had been read when the append was decided.
    """

    def __init__(self, sequence: int, after: int) -> None:
        super().__init__(
            f"event {sequence} was stored after {after} and matches the append condition: read the new events, "
            "decide again, and append with the new position"
        )
        self.sequence = sequence
        self.after = after


class PositionBeyondEnd(PersistenceError):  # noqa: N818 - as below
    """A position is beyond the end of the log: it is of another log, or of a state that was lost in a restore.

    Nothing was read, and nothing was stored. Without this error, the events that are stored next would be skipped.

    Attributes:
        position: The position.
        end: The sequence of the last event of the log.
    """

    def __init__(self, database: str, position: int, end: int) -> None:
        super().__init__(
            f"position {position} is beyond the end of the log, {end}, in {database}: the position is of another log, "
            "or the log was restored from an older copy. Discard what was derived from the old log, and read this one "
            "from the beginning, or from a position that it has."
        )
        self.position = position
        self.end = end


class CommandConflict(PersistenceError):  # noqa: N818 - as below
    """A command identifier was used before, for other events. Nothing was stored.

    Attributes:
        command_id: The identifier.
        reason: What is different.
    """

    def __init__(self, command_id: UUID, reason: str) -> None:
        super().__init__(
            f"command {command_id} has already stored other events: {reason}. Give each command its own identifier."
        )
        self.command_id = command_id
        self.reason = reason


class CommandEventsRemoved(PersistenceError):  # noqa: N818 - as below
    """A command was carried out before, but its events were removed from the log since. Nothing was stored.

    Attributes:
        command_id: The identifier of the command.
        removed: How many of its events were removed.
        events: How many it had stored.
    """

    def __init__(self, command_id: UUID, removed: int, events: int) -> None:
        super().__init__(
            f"command {command_id} was carried out, but events that it stored were removed from the log since "
            f"({removed} of {events}): do not repeat it, or delete its row from command_receipts to carry it out again"
        )
        self.command_id = command_id
        self.removed = removed
        self.events = events


class CommandEventsMerged(CommandEventsRemoved):
    """A command was carried out before, and a compaction has merged events that it stored. Nothing was stored.

    Take the command for done. It cannot be compared with what it stored the first time.

    Attributes:
        command_id: The identifier of the command.
        removed: How many of its events are no longer in the log.
        events: How many it had stored.
        stored_at: When it stored them, in UTC.
    """

    def __init__(self, command_id: UUID, removed: int, events: int, stored_at: datetime) -> None:
        PersistenceError.__init__(
            self,
            f"command {command_id} was carried out at {stored_at}, and a compaction has merged events that it stored "
            f"since ({removed} of {events} are gone): nothing was stored again; take the command for done",
        )
        self.command_id = command_id
        self.removed = removed
        self.events = events
        self.stored_at = stored_at


class SubscriptionConflict(PersistenceError):  # noqa: N818 - as below
    """The saved position of a durable subscription is not where its consumer left it. Nothing was saved.

    Roll the transaction back, and start the subscription again: it then yields what was not processed yet.

    Attributes:
        name: The name of the subscription.
        expected: The sequence at which the consumer left it.
        found: The sequence that is saved; `None` if the subscription was removed.
    """

    def __init__(self, name: str, expected: int, found: int | None) -> None:
        super().__init__(
            f"subscription {name!r} is no longer at {expected}, but at {found}: another consumer of this name has "
            "moved it, or the transaction of an earlier event was rolled back. Roll this one back, and start the "
            "subscription again."
        )
        self.name = name
        self.expected = expected
        self.found = found


class ProjectionError(PersistenceError):
    """An event contradicts the projections. Nothing of its batch was stored.

    Attributes:
        index: The event's place in the batch, counted from 0.
        event_type: The name of its class.
        reason: What it contradicts.
    """

    def __init__(self, index: int, event_type: str, reason: str) -> None:
        super().__init__(f"event {index} of the batch ({event_type}) cannot be applied: {reason}")
        self.index = index
        self.event_type = event_type
        self.reason = reason


class ProjectionsOutOfDate(PersistenceError):  # noqa: N818 - as below
    """The projections are not those that this version of the code has built, or hold events removed from the log.

    Nothing was stored. `Database.open` brings them up to date, unless a newer version has built them.
    """


class ProjectionsTooNew(ProjectionsOutOfDate):
    """A newer version of the code has built a projection, and this version does not rebuild it. Nothing was written.

    Attributes:
        projection: The name of the projection.
        found: The version that has built it.
        expected: The version of this code.
    """

    def __init__(self, projection: str, *, database: str, found: int, expected: int) -> None:
        super().__init__(
            f"projection {projection} in {database} was built by its version {found}, and this application has version "
            f"{expected}: run the newer application in all processes, or go back on purpose with "
            "projections.rebuild(replace_newer=True) on a database opened with maintain_projections=False"
        )
        self.projection = projection
        self.found = found
        self.expected = expected


class SettingError(PersistenceError):
    """A setting cannot be stored, or is not of the type as which it was read.

    Attributes:
        key: The key of the setting.
        reason: What is wrong with its value.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"setting {key!r}: {reason}")
        self.key = key
        self.reason = reason


class SchemaError(PersistenceError):
    """The tables of a database are not those that this version needs.

    Attributes:
        database: The database's address, without its password.
        revision: The database's revision, `None` before the first.
        head: The newest revision that this version knows.
    """

    def __init__(self, message: str, *, database: str, revision: str | None, head: str) -> None:
        super().__init__(message)
        self.database = database
        self.revision = revision
        self.head = head


class SchemaTooNew(SchemaError):  # noqa: N818 - a state of the database, named in the public design
    """A newer version has migrated the database, or the revision is of another Alembic tree. Nothing was written."""


class SchemaOutOfDate(SchemaError):  # noqa: N818
    """The database must be migrated first; the message has the command."""


class MigrationFailed(SchemaError):  # noqa: N818
    """A migration failed and was rolled back as a whole; the message names the copy made before it, if any."""


class DamagedFile(PersistenceError):  # noqa: N818
    """An exported log or a backup was cut, altered or damaged. Nothing was stored."""


class StoreUnavailable(PersistenceError):  # noqa: N818
    """The database cannot be used now: it is locked, read-only, full, damaged, not a database or not reachable.

    An SQLite file may also have been deleted, moved or replaced while it was open.

    The call that raised it has stored nothing, and can be repeated. If the connection is lost or the disk
    fails during COMMIT, the outcome is unknown; the message says so.
    """
