"""The rows that a batch of events reads, and the statements with which it writes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from peon.persistence.backends.compiled import CompiledStatement
from peon.persistence.orchestration import deletions, loaded_rows, statements
from peon.persistence.orchestration.message_text import MessageTexts
from peon.persistence.orchestration.tool_calls import ToolCalls
from peon.persistence.schema.timestamps import format_timestamp


class ThreadEvent(Protocol):
    """An event of a thread."""

    @property
    def thread_id(self) -> UUID: ...

    @property
    def occurred_at(self) -> datetime: ...


@dataclass(slots=True)
class ThreadChanges:
    """What a batch changes in the row of a thread.

    Attributes:
        thread_id: The thread.
        occurred_at: The time of its last event.
        sequence: The sequence of its last event other than a chunk.
        turns: The number of its new turns.
        messages: The number of its new messages.
        first_words: The first words of its new messages.
    """

    thread_id: UUID
    occurred_at: datetime
    sequence: int | None = None
    turns: int = 0
    messages: int = 0
    first_words: str | None = None


class Batch:
    """Collects the changes of many events, so that each table is read once and written once.

    Attributes:
        deletions_left: Whether a deletion is left to clear, so that rows may be hidden.
    """

    def __init__(self) -> None:
        self.projects = loaded_rows.projects()
        self.threads = loaded_rows.threads()
        self.turns = loaded_rows.turns()
        self.messages = loaded_rows.messages()
        self.approvals = loaded_rows.approvals()
        self.checkpoints = loaded_rows.checkpoints_with_threads()
        self.texts = MessageTexts()
        self.tool_calls = ToolCalls()
        self._rows: defaultdict[CompiledStatement, list[Sequence[object]]] = defaultdict(list)
        self._touched: dict[int, ThreadChanges] = {}
        self._deletion: tuple[str, str, int] | None = None
        self.deletions_left = False

    def wanted(self) -> dict[str, dict[int, UUID]]:
        """Returns for each table the identifiers whose rows `load` loads, by their number. Add to it before `load`."""
        return {
            "projects": self.projects.wanted,
            "threads": self.threads.wanted,
            "turns": self.turns.wanted,
            "messages": self.messages.wanted,
            "approvals": self.approvals.wanted,
            "checkpoints": self.checkpoints.wanted,
        }

    def load(self, connection: Connection) -> None:
        for rows in (self.projects, self.threads, self.turns, self.messages, self.approvals, self.checkpoints):
            rows.load(connection)
            self.deletions_left |= rows.deletions_left

    def add(self, statement: CompiledStatement, *parameters: object) -> None:
        """Adds a row of parameters with which `write` executes the statement."""
        self._rows[statement].append(parameters)

    def add_row(
        self, insert: CompiledStatement, take_over: CompiledStatement, key: str, *values: object, hidden: bool
    ) -> None:
        """Adds a row that others refer to; if its key is that of a hidden row, it takes over that row."""
        if hidden:
            self.add(take_over, *values, key)
        else:
            self.add(insert, key, *values)

    def delete(self, kind: str, key: str, sequence: int) -> None:
        """Adds a deletion, which is the last change of a batch."""
        self._deletion = kind, key, sequence

    def touch(self, event: ThreadEvent, sequence: int) -> ThreadChanges:
        """Records the activity of a thread; returns the changes of the thread, to add more."""
        changes = self.touch_by_chunk(event)
        changes.sequence = sequence
        return changes

    def touch_by_chunk(self, event: ThreadEvent) -> ThreadChanges:
        """Records the time only, so that a chunk does not move its thread in two indexes, which costs a tenth more."""
        number = event.thread_id.int
        changes = self._touched.get(number)
        if changes is None:
            changes = self._touched[number] = ThreadChanges(event.thread_id, event.occurred_at)
        changes.occurred_at = event.occurred_at
        return changes

    def select_thread(self, key: str) -> None:
        self._rows[statements.DESELECT_THREAD] = [()]
        self._rows[statements.SELECT_THREAD] = [(1, key)]

    def write(self, connection: Connection) -> None:
        for changes in self._touched.values():
            moment, key = format_timestamp(changes.occurred_at), str(changes.thread_id)
            if changes.sequence is None:
                self.add(statements.TOUCH_THREAD, moment, key)
            else:
                added = changes.turns, changes.messages, changes.first_words
                self.add(statements.CHANGE_THREAD, moment, changes.sequence, *added, key)
        for statement in statements.ORDER:
            if statement in self._rows:
                statement.run(connection, self._rows[statement])
            if statement is statements.INSERT_TURN:  # messages refer to turns, and are written after them
                self.texts.write(connection)
                self.tool_calls.write(connection)
        if self._deletion is not None:
            deletions.delete_or_hide(connection, *self._deletion, deletions_left=self.deletions_left)
