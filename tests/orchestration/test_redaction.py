"""The default rule: what goes, and what stays."""

import pytest
from helpers.event_strategies import values_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from peon.orchestration import (
    MARKER,
    ActionRejected,
    ApprovalRequested,
    BranchPushed,
    ChangesCommitted,
    MessageAppended,
    MessageChunkReceived,
    ProjectCreated,
    ProjectRenamed,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnFailed,
    redacted,
)
from peon.orchestration.events import Event
from peon.persistence.orchestration.codec import orchestration_codec

REPLACED: dict[type[BaseModel], set[str]] = {
    ProjectCreated: {"name", "path"},
    ProjectRenamed: {"name"},
    ThreadCreated: {"title"},
    ThreadStatusChanged: {"error"},
    TurnFailed: {"error"},
    ApprovalRequested: {"action", "detail"},
    ActionRejected: {"reason"},
    ChangesCommitted: {"message"},
    BranchPushed: {"remote"},
    MessageChunkReceived: {"delta"},
    MessageAppended: {"content"},
    TextContent: {"text"},
    ThinkingContent: {"text"},
    ToolCallContent: {"arguments"},
    ToolResultContent: {"output"},
}
"""The content of each event; the others have none. All other fields stay."""

MARKERS = (MARKER, "", None, {"redacted": True})

any_event = st.one_of([values_of(model) for model in sorted(orchestration_codec.event_classes, key=str)])  # type: ignore[type-var]


def assert_redacted(before: BaseModel, after: BaseModel) -> None:
    assert type(after) is type(before)
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if name not in REPLACED.get(type(before), ()):
            assert new == old
        elif isinstance(old, BaseModel):
            assert_redacted(old, new)
        else:
            assert new in MARKERS
            assert (new is None) == (old is None)


@given(any_event)
def test_only_content_is_replaced(event: BaseModel) -> None:
    once = redacted(event)

    assert_redacted(event, once)
    assert redacted(once) == once
    (event_type,), (payload,) = orchestration_codec.encode([once])  # type: ignore[list-item]
    assert orchestration_codec.decode(1, event_type, payload) == once


def test_other_events_are_refused() -> None:
    with pytest.raises(TypeError, match="Event is not an event of peon"):
        redacted(Event(type="Other"))
