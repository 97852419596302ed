"""Finds the streamed messages whose chunks can be merged, by following the events of the log."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Set
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

MERGED_CHARACTERS = 1_000_000
"""Text that one merged event holds at most, so that it can be written and read in a few milliseconds."""

FOLLOWED = (MessageAppended, MessageChunkReceived, TurnCompleted, TurnFailed, TurnInterrupted)
"""The events that `StreamedMessages` must be given, together with the undecodable ones."""


class Chunks(NamedTuple):
    """Chunks of one message that become one event.

    Attributes:
        sequences: Where they are stored, in order.
        characters: The size of their text.
        end: The sequence of the event that ended the turn.
    """

    sequences: "array[int]"
    characters: int
    end: int


@dataclass(slots=True)
class _Run:
    """Chunks of a message with nothing between them that could be a part of its text."""

    section: int
    sequences: "array[int]" = field(default_factory=lambda: array("q"))
    characters: int = 0


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
        self._runs: dict[UUID, list[_Run]] = {}
        self._messages_of: defaultdict[UUID, list[UUID]] = defaultdict(list)

    def follow(self, stored: StoredEvent[Any]) -> Iterator[Chunks]:
        """Takes the next event of the log; yields what can be merged if the event ends a turn."""
        event = stored.event
        if isinstance(event, UndecodableEvent) or stored.sequence in self._refused:
            self._section += 1
        elif isinstance(event, MessageChunkReceived):
            self._add(stored.sequence, event, is_old=stored.stored_at < self._stored_before)
        elif isinstance(event, MessageAppended):
            self._runs[event.message_id] = []  # also if there was a message of this name, which was deleted since
            self._messages_of[event.turn_id].append(event.message_id)
        elif isinstance(event, TurnCompleted | TurnFailed | TurnInterrupted):
            for message_id in self._messages_of.pop(event.turn_id, ()):
                for run in self._runs.pop(message_id, ()):
                    if len(run.sequences) > 1 and stored.stored_at < self._stored_before:
                        yield Chunks(run.sequences, run.characters, stored.sequence)

    def _add(self, sequence: int, event: MessageChunkReceived, *, is_old: bool) -> None:
        runs = self._runs.get(event.message_id)
        if runs is None:
            return  # the turn had ended before
        size = len(event.delta)
        if not runs or runs[-1].section != self._section or runs[-1].characters + size > MERGED_CHARACTERS:
            runs.append(_Run(self._section))
        if is_old:
            runs[-1].sequences.append(sequence)
            runs[-1].characters += size
        else:  # the next chunk begins a run of its own
            runs[-1].section = -1
