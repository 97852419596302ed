"""Messages, and the text that is streamed to them.

A chunk becomes a row of its own, which costs the same for any length of the message. When the turn ends, the chunks
are joined to the content of the message. If a message and the end of its turn are in the same batch, its chunks never
become rows.
"""

from collections import defaultdict
from itertools import groupby
from operator import itemgetter

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from peon.persistence.backends.compiled import KeyedQuery
from peon.persistence.orchestration import statements
from peon.persistence.orchestration.loaded_rows import LoadedMessage
from peon.persistence.schema import projection_messages

_CONTENTS = KeyedQuery(projection_messages.c.id, projection_messages.c.id, projection_messages.c.content)
_CONTENT = list(projection_messages.columns).index(projection_messages.c.content)


class MessageTexts:
    """The new messages of a batch of events, and the chunks that it adds to new and to stored messages."""

    def __init__(self) -> None:
        self._rows: list[list[object]] = []
        self._new_with_text: defaultdict[str, list[LoadedMessage]] = defaultdict(list)
        self._streamed: list[LoadedMessage] = []
        self._ended_turns: list[tuple[str, int]] = []

    def add_message(self, message: LoadedMessage, row: list[object]) -> None:
        """Adds a message; `row` has the columns of the table in their order."""
        self._rows.append(row)
        if message.has_text:
            message.row = row
            self._new_with_text[message.turn_key].append(message)

    def add_chunk(self, message: LoadedMessage, sequence: int, delta: str) -> None:
        if not message.chunks:
            self._streamed.append(message)
        message.chunks.append((sequence, delta))

    def end_turn(self, turn_key: str, sequence: int) -> None:
        """Joins the chunks of the turn's messages up to now to their content."""
        self.end_new_turn(turn_key)
        self._ended_turns.append((turn_key, sequence))

    def end_new_turn(self, turn_key: str) -> None:
        """Like `end_turn`, for a turn that this batch adds."""
        for message in self._new_with_text[turn_key]:
            if message.chunks and message.row is not None:
                message.row[_CONTENT] = _extended(message.row[_CONTENT], [delta for _, delta in message.chunks])
                message.chunks.clear()

    def write(self, connection: Connection) -> None:
        statements.INSERT_MESSAGE.run(connection, self._rows)
        rows: list[tuple[str, str, int, str]] = []
        for message in self._streamed:
            turn_key, key = message.turn_key, message.key
            rows += [(turn_key, key, sequence, to_json(delta).decode()) for sequence, delta in message.chunks]
            message.chunks.clear()  # a message is listed twice if chunks came after the end of its turn
        statements.INSERT_CHUNK.run(connection, rows)
        for turn_key, sequence in self._ended_turns:
            _join_stored_chunks(connection, turn_key, sequence)


def _join_stored_chunks(connection: Connection, turn_key: str, before: int) -> None:
    chunks = statements.CHUNKS_OF_TURN.rows(connection, turn_key, turn_key, before)
    if not chunks:
        return
    deltas = {key: [from_json(delta) for _, delta in group] for key, group in groupby(chunks, key=itemgetter(0))}
    contents = [(_extended(content, deltas[key]), key) for key, content in _CONTENTS.rows(connection, deltas)]
    statements.SET_CONTENT.run(connection, contents)
    statements.DELETE_CHUNKS_OF_TURN.run(connection, [(turn_key, turn_key, before)])


def _extended(content: object, deltas: list[str]) -> str:
    fields = from_json(str(content))
    fields["text"] += "".join(deltas)
    return to_json(fields).decode()
