"""Finds the streamed messages whose chunks can be merged, by following the events of the log."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from peon.persistence.log.codec import UndecodableEvent
from peon.persistence.log.stored_event import StoredEvent

STEP_EVENTS = 2_000
"""Chunks that one transaction removes. Appends wait for it: about 20 ms on SQLite."""

MERGED_CHARACTERS = 1_000_000
"""Text that one merged event holds at most, so that it can be written and read in a few milliseconds."""

FOLLOWED = (MessageAppended, MessageChunkReceived, TurnCompleted, TurnFailed, TurnInterrupted)
"""The events that `StreamedMessages` must be given, together with the undecodable ones."""


class Merge(NamedTuple):
    """Chunks of one message that become one event.

    Attributes:
        sequences: Where they are stored, in order. The merged event takes the place of the last one.
        event: The merged event: the last chunk, with the text of all.
        end: The sequence of the event that ended the turn.
        is_last: Whether the event then holds all that it will hold. A long message takes several merges; the event of
            one is the first chunk of the next.
    """

    sequences: Sequence[int]
    event: MessageChunkReceived
    end: int
    is_last: bool


@dataclass(slots=True)
class _Piece:
    """Chunks that are merged in one step."""

    sequences: "array[int]" = field(default_factory=lambda: array("q"))
    deltas: list[str] = field(default_factory=list)
    last: MessageChunkReceived | None = None


@dataclass(slots=True)
class _Run:
    """Chunks of a message with nothing between them that could be a part of its text."""

    section: int
    pieces: list[_Piece] = field(default_factory=list)
    characters: int = 0

    def add(self, sequence: int, event: MessageChunkReceived) -> None:
        if not self.pieces or len(self.pieces[-1].sequences) >= STEP_EVENTS:
            if self.pieces:  # one text takes less memory than thousands
                self.pieces[-1].deltas = ["".join(self.pieces[-1].deltas)]
            self.pieces.append(_Piece())
        piece = self.pieces[-1]
        piece.sequences.append(sequence)
        piece.deltas.append(event.delta)
        piece.last = event
        self.characters += len(event.delta)

    def merges(self, end: int) -> Iterator[Merge]:
        text = ""
        carried = array("q")
        for piece in self.pieces:
            text += "".join(piece.deltas)
            sequences = carried + piece.sequences
            if len(sequences) > 1 and piece.last is not None:
                event = piece.last.model_copy(update={"delta": text})
                yield Merge(sequences, event, end, piece is self.pieces[-1])
            carried = sequences[-1:]


@dataclass(slots=True)
class _Message:
    """A message, and the chunks that it had before its turn ended."""

    message_id: UUID
    runs: list[_Run] = field(default_factory=list)


class StreamedMessages:
    """Collects the chunks of each message until its turn ends.

    It relies on the projections for which events apply: an event that one of them could not apply counts for nothing.
    Such an event, and one that cannot be decoded, might be applied by a later version of the code. So no merge crosses
    it: the text would come in another order.

    Args:
        refused: The sequences of the events that a projection could not apply.
        stored_before: Events that were stored later stay as they are.
    """

    def __init__(self, refused: Set[int], stored_before: datetime) -> None:
        self._refused = refused
        self._stored_before = stored_before
        self._section = 0
        self._messages: dict[UUID, _Message] = {}
        self._messages_of: defaultdict[UUID, list[_Message]] = defaultdict(list)

    def follow(self, stored: StoredEvent[Any]) -> Iterator[Merge]:
        """Takes the next event of the log; yields what can be merged if the event ends a turn."""
        event = stored.event
        if isinstance(event, UndecodableEvent) or stored.sequence in self._refused:
            self._section += 1
        elif isinstance(event, MessageChunkReceived):
            self._add(stored.sequence, event, is_old=stored.stored_at < self._stored_before)
        elif isinstance(event, MessageAppended):
            # Also if there was a message with this identifier, which was deleted since.
            message = self._messages[event.message_id] = _Message(event.message_id)
            self._messages_of[event.turn_id].append(message)
        elif isinstance(event, TurnCompleted | TurnFailed | TurnInterrupted):
            for message in self._messages_of.pop(event.turn_id, ()):
                if self._messages.get(message.message_id) is message:
                    del self._messages[message.message_id]
                for run in message.runs:
                    if stored.stored_at < self._stored_before:
                        yield from run.merges(stored.sequence)

    def _add(self, sequence: int, event: MessageChunkReceived, *, is_old: bool) -> None:
        message = self._messages.get(event.message_id)
        if message is None:
            return  # the turn had ended before
        runs = message.runs
        is_full = bool(runs) and runs[-1].characters + len(event.delta) > MERGED_CHARACTERS
        if not runs or is_full or runs[-1].section != self._section:
            runs.append(_Run(self._section))
        if is_old:
            runs[-1].add(sequence, event)
        else:
            runs[-1].section = -1  # the next chunk begins a run of its own
