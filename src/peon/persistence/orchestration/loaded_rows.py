"""The stored rows that a batch of events refers to, loaded with one query a table, and those that it adds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Connection, func, literal_column

from peon.orchestration import ApprovalStatus, TurnStatus
from peon.persistence.backends.compiled import KeyedQuery
from peon.persistence.schema import (
    checkpoints,
    projection_approvals,
    projection_messages,
    projection_projects,
    projection_threads,
    projection_turns,
)

RowT = TypeVar("RowT")


class Contradiction(Exception):  # noqa: N818 - of the domain, and handled where it is met
    """An event does not fit what is there; the message says why."""


class KnownRows(Generic[RowT]):
    """The rows of one table, by identifier, as far as events look at them.

    Args:
        noun: What a row is, for messages.
        query: Gives rows, the identifier first.
        read: Makes what is kept of a row.

    Attributes:
        wanted: The identifiers of rows that `load` is going to load.
    """

    def __init__(self, noun: str, query: KeyedQuery, read: Callable[[tuple[Any, ...]], RowT]) -> None:
        self._noun = noun
        self._query = query
        self._read = read
        self._keys: dict[UUID, str] = {}
        self._rows: dict[UUID, RowT] = {}
        self.wanted: set[UUID] = set()

    def load(self, connection: Connection) -> None:
        if not self.wanted:
            return
        self._keys = {identifier: str(identifier) for identifier in self.wanted}
        for row in self._query.rows(connection, self._keys.values()):
            self._rows[UUID(row[0])] = self._read(row)

    def key(self, identifier: UUID) -> str:
        """Returns a wanted identifier as the tables hold it."""
        return self._keys[identifier]

    def get(self, identifier: UUID) -> RowT:
        row = self._rows.get(identifier)
        if row is None:
            raise Contradiction(f"there is no {self._noun} {identifier}")
        return row

    def add(self, identifier: UUID, row: RowT) -> None:
        if identifier in self._rows:
            raise Contradiction(f"there is a {self._noun} {identifier} already")
        self._rows[identifier] = row


@dataclass(slots=True)
class KnownTurn:
    """A turn; `new` where its batch adds it."""

    thread_id: UUID
    thread_key: str
    running: bool
    new: bool


@dataclass(slots=True)
class KnownMessage:
    """A message; `row` where its batch adds it, and `chunks` that its batch adds: sequence and text."""

    key: str
    turn_key: str
    thread_id: UUID
    turn_id: UUID
    has_text: bool
    row: list[object] | None = None
    chunks: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class KnownApproval:
    thread_id: UUID
    turn_id: UUID
    pending: bool


TEXT_CONTENT = ('{"type":"text"', '{"type":"thinking"')
"""How the content of a message begins that chunks can extend."""

_BEGINNING = func.substr(
    projection_messages.c.content, literal_column("1"), literal_column(str(max(map(len, TEXT_CONTENT))))
)

_PROJECTS = KeyedQuery(projection_projects.c.id, projection_projects.c.id)
_THREADS = KeyedQuery(projection_threads.c.id, projection_threads.c.id)
_TURNS = KeyedQuery(
    projection_turns.c.id, projection_turns.c.id, projection_turns.c.thread_id, projection_turns.c.status
)
_MESSAGES = KeyedQuery(
    projection_messages.c.id,
    projection_messages.c.id,
    projection_messages.c.thread_id,
    projection_messages.c.turn_id,
    _BEGINNING,
)
_APPROVALS = KeyedQuery(
    projection_approvals.c.id,
    projection_approvals.c.id,
    projection_approvals.c.thread_id,
    projection_approvals.c.turn_id,
    projection_approvals.c.status,
)
_CHECKPOINTS = KeyedQuery(checkpoints.c.id, checkpoints.c.id, checkpoints.c.thread_id)


def projects() -> KnownRows[bool]:
    return KnownRows("project", _PROJECTS, lambda _: True)


def threads() -> KnownRows[bool]:
    return KnownRows("thread", _THREADS, lambda _: True)


def turns() -> KnownRows[KnownTurn]:
    return KnownRows("turn", _TURNS, _read_turn)


def _read_turn(row: tuple[Any, ...]) -> KnownTurn:
    _, thread_key, status = row
    return KnownTurn(UUID(thread_key), thread_key, running=status == TurnStatus.RUNNING, new=False)


def messages() -> KnownRows[KnownMessage]:
    return KnownRows("message", _MESSAGES, _read_message)


def _read_message(row: tuple[Any, ...]) -> KnownMessage:
    key, thread_key, turn_key, beginning = row
    return KnownMessage(key, turn_key, UUID(thread_key), UUID(turn_key), has_text=beginning.startswith(TEXT_CONTENT))


def approvals() -> KnownRows[KnownApproval]:
    return KnownRows("approval", _APPROVALS, _read_approval)


def _read_approval(row: tuple[Any, ...]) -> KnownApproval:
    _, thread_key, turn_key, status = row
    return KnownApproval(UUID(thread_key), UUID(turn_key), pending=status == ApprovalStatus.PENDING)


def checkpoints_with_threads() -> KnownRows[UUID]:
    """Of each checkpoint, its thread."""
    return KnownRows("checkpoint", _CHECKPOINTS, lambda row: UUID(row[1]))
