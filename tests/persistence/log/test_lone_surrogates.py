"""Text with half a surrogate pair: refused with its place, joined by chunks, replaced in failures."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from helpers.hard_events import ONE, assert_refused, message, renamed, tool_call
from helpers.secret import SECRET
from pydantic import BaseModel, ConfigDict, Field

from peon.orchestration import (
    BranchPushed,
    ChangesCommitted,
    ChunkJoiner,
    MessageChunkReceived,
    OrchestrationEvent,
    ProjectCreated,
    TextContent,
    ThinkingContent,
    ThreadStatusChanged,
    ToolCallContent,
    TurnFailed,
)
from peon.persistence import Database, EventCodec, EventEncodeError, EventStore

HALF = SECRET + "\ud83c"
LOST = "\N{REPLACEMENT CHARACTER}"
REASON = "text with a lone surrogate cannot be encoded as UTF-8"


def chunk(delta: str) -> MessageChunkReceived:
    return MessageChunkReceived(message_id=ONE, turn_id=ONE, thread_id=ONE, delta=delta)


REFUSED: list[tuple[str, OrchestrationEvent]] = [
    ("name", renamed(HALF)),
    ("path", ProjectCreated(project_id=ONE, name="x", path=HALF)),
    ("delta", chunk(HALF)),
    ("content.text", message(TextContent(text=HALF))),
    ("content.text", message(ThinkingContent(text=HALF))),
    ("content.name", message(ToolCallContent(tool_call_id="1", name=HALF, arguments={}))),
    ("message", ChangesCommitted(thread_id=ONE, commit="c0ffee", message=HALF)),
    ("remote", BranchPushed(thread_id=ONE, name="tides", remote=HALF)),
]


@pytest.mark.parametrize(("place", "event"), REFUSED, ids=lambda value: getattr(value, "type", value))
def test_the_error_names_the_field_of_the_text(memory: Database, place: str, event: OrchestrationEvent) -> None:
    assert_refused(memory, event, reason=f"{place}: {REASON}")


def test_tool_arguments_that_were_changed_later_are_refused_with_the_same_reason(memory: Database) -> None:
    event = tool_call({"a": 1})
    event.content.arguments["a"] = HALF  # type: ignore[union-attr]
    assert_refused(memory, event, reason=REASON)


@dataclass
class Place:
    name: str


class Seen(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: Literal["Seen"] = "Seen"
    names: list[str] = []
    by_name: dict[str, str] = Field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    some: frozenset[str] = frozenset()
    place: Place | None = None
    numbers: dict[int, str] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("names.1", {"names": ["a", HALF]}),
        ("by_name.(unknown)", {"by_name": {SECRET: HALF}}),
        ("by_name.(unknown)", {"by_name": {HALF: "a"}}),
        ("pair.1", {"pair": (1, HALF)}),
        ("some.0", {"some": frozenset([HALF])}),
        ("place.(unknown)", {"place": Place(HALF)}),
        ("numbers.(unknown)", {"numbers": {5: HALF}}),
        ("(unknown)", {"more": HALF}),
    ],
)
def test_the_error_names_the_field_of_any_model(memory: Database, place: str, fields: dict[str, Any]) -> None:
    store: EventStore[Seen] = EventStore(memory.engine, EventCodec(Seen))
    with pytest.raises(EventEncodeError) as caught:
        store.append_all([Seen(**fields)])
    assert caught.value.reason.startswith(f"{place}: {REASON}")
    assert SECRET not in str(caught.value)
    store.close()


def test_an_emoji_cut_by_a_provider_is_stored_by_a_joiner(database: Database) -> None:
    joiner = ChunkJoiner()
    deltas = [joiner.add("High tide \ud83c"), joiner.add("\udf0a!"), joiner.end()]
    database.events.append_all([chunk(delta) for delta in deltas])
    text = "".join(stored.event.delta for stored in database.events.replay_all())  # type: ignore[union-attr]
    assert text == "High tide \N{WATER WAVE}!"


def failures(error: str) -> list[OrchestrationEvent]:
    return [
        TurnFailed(turn_id=ONE, thread_id=ONE, error=error),
        ThreadStatusChanged(thread_id=ONE, status="error", error=error),
    ]


def errors_of(events: list[OrchestrationEvent]) -> list[str]:
    return [event.error for event in events]  # type: ignore[union-attr, misc]


def test_a_failure_is_always_storable(database: Database) -> None:
    file_name = os.fsdecode(b"caf\xe9")
    for error in (f"cannot read {file_name}", "\ud83c", "\ud83c\udf0a", ""):
        database.events.append_all(failures(error))
    errors = errors_of([stored.event for stored in database.events.replay_all()])
    assert errors[::2] == errors[1::2] == [f"cannot read caf{LOST}", LOST, "\N{WATER WAVE}", ""]


def test_a_failure_keeps_a_nul_character() -> None:
    assert errors_of(failures("a\0b")) == ["a\0b", "a\0b"]


def test_a_failure_that_was_changed_later_is_refused(memory: Database) -> None:
    memory.events.append_all(failures("x"))
    for event in failures("x"):
        assert_refused(memory, event.model_copy(update={"error": HALF}))
