"""The default rule of a redaction: what it replaces in each event of the domain, and what it keeps."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from peon.orchestration.events import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    MessageAppended,
    MessageChunkReceived,
    ProjectCreated,
    ProjectDeleted,
    ProjectRenamed,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatusChanged,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from peon.orchestration.model import MessageContent, TextContent, ThinkingContent, ToolCallContent

MARKER = "[redacted]"
"""What takes the place of a text. Stored events contain it, so it never changes."""

REDACTED_ARGUMENTS = {"redacted": True}
"""What takes the place of a tool's arguments, which are a JSON object."""

EventT = TypeVar("EventT", bound=BaseModel)


def redacted(event: EventT) -> EventT:
    """Returns the event without its content: `MARKER` is in the place of texts, paths, tool arguments and outputs.

    Type, identifiers, times, roles, names of models and tools, and names that identify something in git (references,
    commits, branches) stay. A streamed chunk becomes empty: the message that it belongs to has the marker.

    Raises:
        TypeError: It is no event of the domain. A rule for events of your own can call this one for all others.
    """
    replaced = _REPLACED.get(type(event))
    if replaced is None:
        raise TypeError(
            f"{type(event).__name__} is not an event of peon.orchestration: write a rule that knows it, and that calls "
            "this one for other events"
        )
    update = replaced(event)
    # Validated again, because `model_copy` does not validate.
    return type(event).model_validate({**dict(event), **update}) if update else event


def _content(event: MessageAppended) -> dict[str, Any]:
    return {"content": _redacted_content(event.content)}


def _redacted_content(content: MessageContent) -> MessageContent:
    if isinstance(content, TextContent | ThinkingContent):
        return content.model_copy(update={"text": MARKER})
    if isinstance(content, ToolCallContent):
        return content.model_copy(update={"arguments": REDACTED_ARGUMENTS})
    return content if content.output is None else content.model_copy(update={"output": MARKER})


def _texts(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Returns what replaces fields by the marker, except those that are `None`."""
    return lambda event: {name: MARKER for name in names if getattr(event, name) is not None}


# Each event is listed, so that a new one is refused until somebody has decided what its content is.
_REPLACED: dict[type[Any], Callable[[Any], dict[str, Any]]] = {
    ProjectCreated: _texts("name", "path"),
    ProjectRenamed: _texts("name"),
    ProjectDeleted: _texts(),
    ThreadCreated: _texts("title"),
    ThreadDeleted: _texts(),
    ThreadSelected: _texts(),
    ThreadStatusChanged: _texts("error"),
    TurnStarted: _texts(),
    TurnCompleted: _texts(),
    TurnInterrupted: _texts(),
    TurnFailed: _texts("error"),
    MessageAppended: _content,
    MessageChunkReceived: lambda _: {"delta": ""},
    ApprovalRequested: _texts("action", "detail"),
    ActionApproved: _texts(),
    ActionRejected: _texts("reason"),
    CheckpointCreated: _texts(),
    CheckpointRestored: _texts(),
    ChangesCommitted: _texts("message"),
    BranchCreated: _texts(),
    BranchPushed: _texts("remote"),
}
