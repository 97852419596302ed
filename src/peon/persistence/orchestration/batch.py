"""The rows that a batch of events reads, and the statements with which it writes."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from peon.persistence.backends.compiled import CompiledStatement
from peon.persistence.orchestration import loaded_rows, statements
from peon.persistence.orchestration.message_text import MessageTexts
from peon.persistence.schema.timestamps import format_timestamp


class Batch:
    """Collects the changes of many events, so that each table is read once and written once."""

    def __init__(self) -> None:
        self.projects = loaded_rows.projects()
        self.threads = loaded_rows.threads()
        self.turns = loaded_rows.turns()
        self.messages = loaded_rows.messages()
        self.approvals = loaded_rows.approvals()
        self.checkpoints = loaded_rows.checkpoints_with_threads()
        self.texts = MessageTexts()
        self._rows: defaultdict[CompiledStatement, list[Sequence[object]]] = defaultdict(list)
        self._touched: dict[UUID, datetime] = {}

    def wanted(self) -> dict[str, set[UUID]]:
        """Returns for each table the set of identifiers whose rows `load` loads. Add to it before `load`."""
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

    def add(self, statement: CompiledStatement, *parameters: object) -> None:
        """Adds a row of parameters with which `write` executes the statement."""
        self._rows[statement].append(parameters)

    def touch(self, thread_id: UUID, moment: datetime) -> None:
        """Records when the thread was updated."""
        self._touched[thread_id] = moment

    def select_thread(self, key: str) -> None:
        self._rows[statements.DESELECT_THREAD] = [()]
        self._rows[statements.SELECT_THREAD] = [(1, key)]

    def write(self, connection: Connection) -> None:
        for thread_id, moment in self._touched.items():
            self.add(statements.TOUCH_THREAD, format_timestamp(moment), str(thread_id))
        for statement in statements.ORDER:
            if statement in self._rows:
                statement.run(connection, self._rows[statement])
            if statement is statements.INSERT_TURN:  # messages refer to turns, and are written after them
                self.texts.write(connection)
