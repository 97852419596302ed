"""Events with hard values, and assertions about their appends."""

import math
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from helpers.recorded_payloads import EVENT, PAYLOADS
from helpers.secret import SECRET, assert_secret_is_kept
from pydantic import BaseModel

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    OrchestrationEvent,
    ProjectRenamed,
    Provider,
    TextContent,
    ToolCallContent,
)
from peon.payloads import MAXIMUM_INTEGER_BITS, MAXIMUM_JSON_DEPTH
from peon.persistence import Database, EventEncodeError

ONE = UUID(int=1)
NOON = datetime(2025, 3, 14, 12, tzinfo=UTC)


def samples() -> list[OrchestrationEvent]:
    """Returns new events of every class, and messages with every kind of content; tests tamper with them."""
    return [EVENT.validate_json(payload) for payload in PAYLOADS]


def renamed(name: str = "tide-table") -> ProjectRenamed:
    return ProjectRenamed(project_id=ONE, name=name)


def message(content: Any) -> MessageAppended:
    return MessageAppended(message_id=ONE, turn_id=ONE, thread_id=ONE, role="assistant", content=content)


def tool_call(arguments: Any) -> MessageAppended:
    return message(ToolCallContent(tool_call_id="1", name="run", arguments=arguments))


def approval(detail: Any) -> ApprovalRequested:
    return ApprovalRequested(approval_id=ONE, turn_id=ONE, thread_id=ONE, action="run", detail=detail)


def assert_unharmed(database: Database, before: list[Any]) -> None:
    """Checks that nothing was stored since `before`, and that the next append gets the next sequence."""
    assert database.events.replay_all() == before
    (stored,) = database.events.append_all([renamed()])
    assert stored.sequence == len(before) + 1
    assert database.events.replay_all() == [*before, stored]


def assert_refused(database: Database, *events: Any, index: int = 0, reason: str = "") -> None:
    before = database.events.replay_all()
    with pytest.raises(EventEncodeError) as caught:
        database.events.append_all(list(events))
    error = caught.value
    assert (error.index, error.event_type) == (index, type(events[index]).__name__)
    assert reason in error.reason
    assert str(error) == f"event {index} of the batch ({error.event_type}) cannot be stored: {error.reason}"
    assert len(str(error)) < 1_000
    assert_secret_is_kept(error)
    assert_unharmed(database, before)


class Stranger(BaseModel):
    type: str = "ProjectRenamed"
    project_id: UUID = ONE
    name: str = SECRET


class Renamed(ProjectRenamed):
    pass


def deep(levels: int) -> Any:
    """Returns objects and lists that are nested to this depth."""
    value: Any = SECRET
    for level in range(levels):
        value = {"x": value} if level % 2 else [value]
    return value


NOT_JSON: dict[str, Any] = {
    "object": object(),
    "tuple": (1, SECRET),
    "set": {SECRET},
    "bytes": SECRET.encode(),
    "UUID": ONE,
    "datetime": NOON,
    "Decimal": Decimal("1.5"),
    "enumeration": Provider.CLAUDE,
    "model": TextContent(text=SECRET),
    "event": renamed(SECRET),
    "subclass of dict": OrderedDict(a=SECRET),
    "subclass of str": type("Text", (str,), {})(SECRET),
    "subclass of int": type("Number", (int,), {})(5),
    "subclass of list": type("List", (list,), {})([SECRET]),
    "NaN": math.nan,
    "infinity": math.inf,
    "negative infinity": -math.inf,
    "number as a key": {1: SECRET},
    "None as a key": {None: SECRET},
    "True as a key": {True: SECRET},
    "lone surrogate": "\ud800" + SECRET,
    "lone surrogate as a key": {SECRET + "\udfff": 1},
    "integer of 4,301 digits": 10**4_300,
    "integer of too many bits": 2**MAXIMUM_INTEGER_BITS,
    "negative integer of too many bits": -(2**MAXIMUM_INTEGER_BITS),
    "too deep": deep(MAXIMUM_JSON_DEPTH + 1),
    "1,000 levels": deep(1_000),
    "100,000 levels": deep(100_000),
}
