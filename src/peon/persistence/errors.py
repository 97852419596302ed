"""What the package raises. Each error names what was wrong, where, and what to do; none carries a payload."""

from typing import Any
from uuid import UUID


class PersistenceError(Exception):
    """Base of all errors of `peon.persistence`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), *self.args), self.__dict__


def _made_again(kind: type[PersistenceError], *arguments: object) -> PersistenceError:
    """Makes a copy, or what another process has sent, without the constructor: it would be given the message."""
    return kind.__new__(kind, *arguments)


class EventEncodeError(PersistenceError):
    """An event was refused: it could not have been read back as it is. Nothing of its batch was stored.

    Attributes:
        index: The event's place in the batch, from 0.
        event_type: The name of its class.
        reason: What is wrong with it.
    """

    def __init__(self, index: int, event_type: str, reason: str) -> None:
        super().__init__(f"event {index} of the batch ({event_type}) cannot be stored: {reason}")
        self.index = index
        self.event_type = event_type
        self.reason = reason


class EventDecodeError(PersistenceError):
    """A stored event could not be read. `undecodable="keep"` reads on and yields it as it is.

    Attributes:
        sequence: Its place in the log.
        event_type: What its `event_type` column says.
        reason: What is wrong with it.
    """

    def __init__(self, sequence: int, event_type: str, reason: str) -> None:
        super().__init__(
            f"event {sequence} ({event_type}) cannot be decoded: {reason}. "
            'Mend that (with an upcaster, where an older version wrote it), or read on with undecodable="keep".'
        )
        self.sequence = sequence
        self.event_type = event_type
        self.reason = reason


class ConcurrencyError(PersistenceError):
    """An append was refused: what its condition rules out has happened. Nothing of its batch was stored.

    Attributes:
        sequence: The first event that conflicts.
        after: The sequence up to which the decision to append was informed.
    """

    def __init__(self, sequence: int, after: int) -> None:
        super().__init__(
            f"event {sequence} matches the condition of the append, which knows the log up to {after}: read what is "
            "new, decide again, and append with the new position"
        )
        self.sequence = sequence
        self.after = after


class CommandConflict(PersistenceError):  # noqa: N818 - as below
    """A command was given the identifier of another one, which has stored other events. Nothing was stored.

    Attributes:
        command_id: The identifier.
        reason: What is different.
    """

    def __init__(self, command_id: UUID, reason: str) -> None:
        super().__init__(f"command {command_id} was carried out before, as another one: {reason}")
        self.command_id = command_id
        self.reason = reason


class SubscriptionConflict(PersistenceError):  # noqa: N818 - as below
    """The saved position of a named subscription is not where its consumer left it. Nothing was saved.

    Undo the transaction, and begin the subscription anew: what it yields then was not dealt with yet.

    Attributes:
        name: Of the subscription.
        expected: The sequence at which the consumer had left it.
        found: The sequence that is saved; `None` where the subscription was removed.
    """

    def __init__(self, name: str, expected: int, found: int | None) -> None:
        super().__init__(
            f"subscription {name!r} is not at {expected} any more, but at {found}: another consumer of this name has "
            "moved it, or the transaction of an earlier event was undone; undo this one, and begin the subscription "
            "anew"
        )
        self.name = name
        self.expected = expected
        self.found = found


class ProjectionError(PersistenceError):
    """An event was refused: it contradicts what the projections hold. Nothing of its batch was stored.

    Attributes:
        index: The event's place in the batch, from 0.
        event_type: The name of its class.
        reason: What it contradicts.
    """

    def __init__(self, index: int, event_type: str, reason: str) -> None:
        super().__init__(f"event {index} of the batch ({event_type}) cannot be applied: {reason}")
        self.index = index
        self.event_type = event_type
        self.reason = reason


class ProjectionsOutOfDate(PersistenceError):  # noqa: N818 - as below
    """The projections in the database are those of another version of the code. Nothing was stored.

    `Database.open` and `db.projections.rebuild()` bring them to this version.
    """


class SettingError(PersistenceError):
    """A setting was refused, or is not what it was asked for as.

    Attributes:
        key: Of the setting.
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
        revision: The revision it is at, `None` before the first.
        head: The newest revision that this version knows.
    """

    def __init__(self, message: str, *, database: str, revision: str | None, head: str) -> None:
        super().__init__(message)
        self.database = database
        self.revision = revision
        self.head = head


class SchemaTooNew(SchemaError):  # noqa: N818 - a state of the database, named in the public design
    """The database was migrated by a newer version, or is another application's. Nothing was written."""


class SchemaOutOfDate(SchemaError):  # noqa: N818
    """The database must be migrated first; the message holds the command."""


class MigrationFailed(SchemaError):  # noqa: N818
    """A migration failed and was undone as a whole; the message names the copy made before it, if any."""


class StoreUnavailable(PersistenceError):  # noqa: N818
    """The database cannot be used now: locked, read-only, disk full, damaged, not a database, not reachable.

    Nothing was stored by the call that raised it, and the next one may work. Only where the connection to a server
    was lost while it committed, nobody knows; the message says so.
    """
