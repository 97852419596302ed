"""What a batch of events looks at and what it writes."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from peon.persistence.projections import known_rows, writes
from peon.persistence.schema import projection_messages
from peon.persistence.statements import DriverStatement, KeyedQuery
from peon.persistence.timestamps import format_timestamp

_CONTENTS = KeyedQuery(projection_messages.c.id, projection_messages.c.id, projection_messages.c.content)


class Batch:
    """Collects what events change, so that each table is read once and written once, however many they are."""

    def __init__(self) -> None:
        self.projects = known_rows.projects()
        self.threads = known_rows.threads()
        self.turns = known_rows.turns()
        self.messages = known_rows.messages()
        self.approvals = known_rows.approvals()
        self.checkpoints = known_rows.checkpoints_of_threads()
        self._rows: defaultdict[DriverStatement, list[Sequence[object]]] = defaultdict(list)
        self._touched: dict[UUID, datetime] = {}
        self._ended_turns: list[tuple[str, int]] = []

    def load(self, connection: Connection) -> None:
        """Loads the rows that were asked for with `want`."""
        for rows in (self.projects, self.threads, self.turns, self.messages, self.approvals, self.checkpoints):
            rows.load(connection)

    def add(self, statement: DriverStatement, *parameters: object) -> None:
        """Adds a row of parameters to those that `write` executes the statement with."""
        self._rows[statement].append(parameters)

    def touch(self, thread_id: UUID, moment: datetime) -> None:
        """The thread was updated then."""
        self._touched[thread_id] = moment

    def select_thread(self, thread_id: UUID) -> None:
        self._rows[writes.DESELECT_THREAD] = [()]
        self._rows[writes.SELECT_THREAD] = [(str(thread_id),)]

    def join_chunks(self, turn_id: UUID, before: int) -> None:
        """What was streamed to the turn's messages, before that sequence, becomes part of their content."""
        self._ended_turns.append((str(turn_id), before))

    def write(self, connection: Connection) -> None:
        for thread_id, moment in self._touched.items():
            self.add(writes.TOUCH_THREAD, format_timestamp(moment), str(thread_id))
        rows = self._rows
        for statement in writes.ORDER:
            if statement in rows:
                statement.run(connection, rows[statement])
            if statement is writes.INSERT_CHUNK:
                for turn_id, sequence in self._ended_turns:
                    _join_chunks(connection, turn_id, sequence)


def _join_chunks(connection: Connection, turn_id: str, before: int) -> None:
    chunks = writes.CHUNKS_OF_TURN.rows(connection, turn_id, before)
    if not chunks:
        return
    added = {
        message_id: "".join([from_json(delta) for _, delta in group])
        for message_id, group in groupby(chunks, key=itemgetter(0))
    }
    contents = []
    for message_id, content in _CONTENTS.rows(connection, added):
        fields = from_json(content)
        fields["text"] += added[message_id]
        contents.append((to_json(fields).decode(), message_id))
    writes.SET_CONTENT.run(connection, contents)
    writes.DELETE_CHUNKS_OF_TURN.run(connection, [(turn_id, before)])
