"""The stored rows that a batch of events refers to, loaded with one query for each table, and the rows that it adds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Table, exists, func, literal_column, select

from peon.orchestration import ApprovalStatus, TurnStatus
from peon.persistence.backends.compiled import KeyedQuery
from peon.persistence.orchestration.visibility import is_visible
from peon.persistence.schema import (
    checkpoints,
    projection_approvals,
    projection_deletions,
    projection_messages,
    projection_projects,
    projection_threads,
    projection_turns,
)

RowT = TypeVar("RowT")


class Contradiction(Exception):  # noqa: N818 - of the domain, and handled where it is met
    """An event contradicts the stored rows; the message says why."""


class LoadedRows(Generic[RowT]):
    """The rows of one table that a batch needs, by the number of their identifier.

    A UUID compares and hashes in Python code, its `int` does not: a catch-up takes a tenth less time.

    Args:
        noun: What a row is called in messages.
        query: Returns rows that begin with the identifier. See `_query`.
        read: Converts a row into what the handlers need of it.

    Attributes:
        wanted: The identifiers of the rows that `load` loads, by their number.
        deletions_left: Whether a deletion is left to clear, as far as `load` has seen.
    """

    def __init__(self, noun: str, query: KeyedQuery, read: Callable[[tuple[Any, ...]], RowT]) -> None:
        self._noun = noun
        self._query = query
        self._read = read
        self._keys: dict[int, str] = {}
        self._rows: dict[int, RowT] = {}
        self._hidden: set[int] = set()
        self.wanted: dict[int, UUID] = {}
        self.deletions_left = False

    def load(self, connection: Connection) -> None:
        if not self.wanted:
            return
        self._keys = {number: str(identifier) for number, identifier in self.wanted.items()}
        for *row, visible, deletions_left in self._query.rows(connection, self._keys.values()):
            self.deletions_left = bool(deletions_left)
            number = UUID(row[0]).int
            if visible:
                self._rows[number] = self._read(tuple(row))
            else:
                self._hidden.add(number)

    def key(self, identifier: UUID) -> str:
        """Returns the text of a wanted identifier, as it is stored."""
        return self._keys[identifier.int]

    def get(self, identifier: UUID) -> RowT:
        row = self._rows.get(identifier.int)
        if row is None:
            raise Contradiction(f"there is no {self._noun} {identifier}")
        return row

    def add(self, identifier: UUID, row: RowT) -> bool:
        """Returns whether the table has a hidden row with the identifier, of a deletion that is left to clear."""
        number = identifier.int
        if number in self._rows:
            raise Contradiction(f"there is a {self._noun} {identifier} already")
        self._rows[number] = row
        return number in self._hidden


@dataclass(slots=True)
class LoadedTurn:
    """A turn; `new` if the batch adds it."""

    thread_id: UUID
    thread_key: str
    running: bool
    new: bool


@dataclass(slots=True)
class LoadedMessage:
    """A message; its `row` if the batch adds it, and the `chunks` that the batch adds: sequence and text."""

    key: str
    turn_key: str
    thread_id: UUID
    turn_id: UUID
    has_text: bool
    row: list[object] | None = None
    chunks: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class LoadedApproval:
    thread_id: UUID
    turn_id: UUID
    pending: bool


TEXT_CONTENT = ('{"type":"text"', '{"type":"thinking"')
"""The beginnings of message contents that chunks can extend."""

_BEGINNING = func.substr(
    projection_messages.c.content, literal_column("1"), literal_column(str(max(map(len, TEXT_CONTENT))))
)

_DELETIONS_LEFT = exists(select(literal_column("1")).select_from(projection_deletions))


def _query(table: Table, *columns: ColumnElement[Any]) -> KeyedQuery:
    """Returns the query for the identifier, the columns, whether the row is visible, and whether any may be hidden."""
    return KeyedQuery(table.c.id, table.c.id, *columns, is_visible(table), _DELETIONS_LEFT)


_PROJECTS = _query(projection_projects)
_THREADS = _query(projection_threads)
_TURNS = _query(projection_turns, projection_turns.c.thread_id, projection_turns.c.status)
_MESSAGES = _query(projection_messages, projection_messages.c.thread_id, projection_messages.c.turn_id, _BEGINNING)
_APPROVALS = _query(
    projection_approvals,
    projection_approvals.c.thread_id,
    projection_approvals.c.turn_id,
    projection_approvals.c.status,
)
_CHECKPOINTS = _query(checkpoints, checkpoints.c.thread_id)


def projects() -> LoadedRows[bool]:
    return LoadedRows("project", _PROJECTS, lambda _: True)


def threads() -> LoadedRows[bool]:
    return LoadedRows("thread", _THREADS, lambda _: True)


def turns() -> LoadedRows[LoadedTurn]:
    return LoadedRows("turn", _TURNS, _read_turn)


def _read_turn(row: tuple[Any, ...]) -> LoadedTurn:
    _, thread_key, status = row
    return LoadedTurn(UUID(thread_key), thread_key, running=status == TurnStatus.RUNNING, new=False)


def messages() -> LoadedRows[LoadedMessage]:
    return LoadedRows("message", _MESSAGES, _read_message)


def _read_message(row: tuple[Any, ...]) -> LoadedMessage:
    key, thread_key, turn_key, beginning = row
    return LoadedMessage(key, turn_key, UUID(thread_key), UUID(turn_key), has_text=beginning.startswith(TEXT_CONTENT))


def approvals() -> LoadedRows[LoadedApproval]:
    return LoadedRows("approval", _APPROVALS, _read_approval)


def _read_approval(row: tuple[Any, ...]) -> LoadedApproval:
    _, thread_key, turn_key, status = row
    return LoadedApproval(UUID(thread_key), UUID(turn_key), pending=status == ApprovalStatus.PENDING)


def checkpoints_with_threads() -> LoadedRows[UUID]:
    """Keeps the thread of each checkpoint."""
    return LoadedRows("checkpoint", _CHECKPOINTS, lambda row: UUID(row[1]))
