"""Messages that were streamed in chunks, and a process that is killed while it merges them."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from helpers.orchestration_scene import project, thread
from helpers.processes import die
from sqlalchemy import event

from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    TextContent,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import Database

PROJECT, THREAD, TURN, MESSAGE, OTHER_TURN, OTHER_MESSAGE = (UUID(int=number) for number in range(1, 7))

NO_AGE = timedelta(0)

SCENE: list[OrchestrationEvent] = [project(PROJECT), thread(THREAD, PROJECT)]
"""Events 1 and 2."""


def started(turn: UUID = TURN, message: UUID = MESSAGE) -> list[OrchestrationEvent]:
    content = TextContent(text="")
    place: dict[str, Any] = {"turn_id": turn, "thread_id": THREAD}
    return [
        TurnStarted(**place),
        MessageAppended(message_id=message, role=MessageRole.ASSISTANT, content=content, **place),
    ]


def chunk(delta: str, turn: UUID = TURN, message: UUID = MESSAGE) -> MessageChunkReceived:
    return MessageChunkReceived(message_id=message, turn_id=turn, thread_id=THREAD, delta=delta)


def chunks(text: str, turn: UUID = TURN, message: UUID = MESSAGE) -> list[OrchestrationEvent]:
    return [chunk(character, turn, message) for character in text]


def ended(turn: UUID = TURN) -> OrchestrationEvent:
    return TurnCompleted(turn_id=turn, thread_id=THREAD)


def whole(text: str, turn: UUID = TURN, message: UUID = MESSAGE) -> list[OrchestrationEvent]:
    """Returns the events of a turn: its chunks are the third to the last but one."""
    return [*started(turn, message), *chunks(text, turn, message), ended(turn)]


def deltas(database: Database, after: int = 0) -> dict[int, str]:
    """Returns the chunks that are stored, by sequence."""
    return {
        stored.sequence: stored.event.delta
        for stored in database.events.stream(after=after)
        if isinstance(stored.event, MessageChunkReceived)
    }


def be_killed_while_compacting(url: str) -> None:
    """Is killed when the events of a step are deleted, and nothing is committed."""
    with Database.open(url=url) as database:

        @event.listens_for(database.engine, "after_cursor_execute")
        def kill(*arguments: Any) -> None:
            if arguments[2].startswith("DELETE FROM events"):
                die()

        database.maintenance.compact(older_than=NO_AGE)
