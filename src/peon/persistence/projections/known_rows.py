"""The stored rows that a batch of events refers to, loaded with one query a table, and those that it adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Connection, func, literal_column

from peon.orchestration import ApprovalStatus, TurnStatus
from peon.persistence.schema import (
    checkpoints,
    projection_approvals,
    projection_messages,
    projection_projects,
    projection_threads,
    projection_turns,
)
from peon.persistence.statements import KeyedQuery

RowT = TypeVar("RowT")


class Contradiction(Exception):  # noqa: N818 - of the domain, and handled where it is met
    """An event does not fit what is there; the message says why."""


class KnownRows(Generic[RowT]):
    """The rows of one table, by identifier, as far as events look at them.

    Args:
        noun: What a row is, for messages.
        query: Gives rows, the identifier first.
        read: Makes what is kept of a row.
    """

    def __init__(self, noun: str, query: KeyedQuery, read: Callable[[tuple[Any, ...]], RowT]) -> None:
        self._noun = noun
        self._query = query
        self._read = read
        self._wanted: set[UUID] = set()
        self._rows: dict[UUID, RowT] = {}

    def want(self, identifier: UUID) -> None:
        self._wanted.add(identifier)

    def load(self, connection: Connection) -> None:
        if self._wanted:
            for row in self._query.rows(connection, map(str, self._wanted)):
                self._rows[UUID(row[0])] = self._read(row)

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
    thread_id: UUID
    running: bool


@dataclass(slots=True)
class KnownMessage:
    thread_id: UUID
    turn_id: UUID
    has_text: bool


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
    return KnownRows("turn", _TURNS, lambda row: KnownTurn(UUID(row[1]), running=row[2] == TurnStatus.RUNNING))


def messages() -> KnownRows[KnownMessage]:
    def read(row: tuple[Any, ...]) -> KnownMessage:
        return KnownMessage(UUID(row[1]), UUID(row[2]), has_text=row[3].startswith(TEXT_CONTENT))

    return KnownRows("message", _MESSAGES, read)


def approvals() -> KnownRows[KnownApproval]:
    def read(row: tuple[Any, ...]) -> KnownApproval:
        return KnownApproval(UUID(row[1]), UUID(row[2]), pending=row[3] == ApprovalStatus.PENDING)

    return KnownRows("approval", _APPROVALS, read)


def checkpoints_of_threads() -> KnownRows[UUID]:
    """Each checkpoint with its thread."""
    return KnownRows("checkpoint", _CHECKPOINTS, lambda row: UUID(row[1]))
