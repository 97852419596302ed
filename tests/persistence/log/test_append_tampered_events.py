"""Events that were changed after their validation are refused, and nothing is stored."""

import math
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from helpers.event_strategies import EVENT_CLASSES
from helpers.hard_events import (
    NOON,
    NOT_JSON,
    ONE,
    Renamed,
    Stranger,
    approval,
    assert_refused,
    assert_unharmed,
    message,
    renamed,
    samples,
    tool_call,
)
from helpers.recorded_payloads import PAYLOADS
from helpers.secret import SECRET
from helpers.slow_proofs import rest_is_slow
from pydantic import BaseModel

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    RuntimeMode,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    Turn,
    TurnStatus,
)
from peon.persistence import Database, EventEncodeError


def said(text: str = "x") -> MessageAppended:
    return message(TextContent(text=text))


def contents() -> list[Any]:
    return [event.content for event in samples() if isinstance(event, MessageAppended)]


VALID = [
    *samples(),
    said(),
    message(ThinkingContent(text="x")),
    tool_call({"a": 1}),
    approval({"list": [1]}),
    ThreadStatusChanged(thread_id=ONE, status="error", error="x"),
    ThreadStatusChanged(thread_id=ONE, status="running"),
]

Tamper = Callable[[Any, str, Any], Any]


def by_setattr(model: Any, field: str, value: Any) -> Any:
    copy = model.model_copy(deep=True)
    object.__setattr__(copy, field, value)
    return copy


def by_model_copy(model: Any, field: str, value: Any) -> Any:
    return model.model_copy(update={field: value}, deep=True)


def by_model_construct(model: Any, field: str, value: Any) -> Any:
    return type(model).model_construct(**{**dict(model), field: value})


TAMPERS = [by_setattr, by_model_copy, by_model_construct]
every_way = pytest.mark.parametrize("tamper", TAMPERS)
one_way = pytest.mark.parametrize("tamper", rest_is_slow(TAMPERS, first=1))
WRONG_TEXT: list[Any] = [5, 5.0, True, SECRET.encode(), [SECRET], {SECRET: SECRET}, object(), ONE, "\udc80" + SECRET]

WRONG_TIME: list[Any] = [
    None,
    SECRET,
    "2025-03-14T12:00:00Z",
    1741953600,
    1741953600.5,
    date(2025, 3, 14),
    NOON.replace(tzinfo=None),
    NOON.astimezone(timezone(timedelta(hours=1))),
    NOON.replace(tzinfo=timezone(timedelta(0), "Zulu")),
    timedelta(1),
]

WRONG_ENUMERATION: list[Any] = [None, SECRET, 5, "claude", "full_access", "idle", "user", TurnStatus.RUNNING, object()]

WRONG_CONTENT: list[Any] = [
    None,
    SECRET,
    5,
    {"type": "text", "text": SECRET},
    [TextContent(text=SECRET)],
    renamed(SECRET),
    Stranger(),
    Turn(id=ONE, thread_id=ONE, status="running", error=SECRET, started_at=NOON, completed_at=None),
    TextContent,
]

WRONG_VALUES: dict[type, list[Any]] = {
    UUID: [None, SECRET, str(ONE), ONE.int, ONE.bytes, ONE.hex, object(), [ONE]],
    str: [None, *WRONG_TEXT],
    type(None): WRONG_TEXT,
    datetime: WRONG_TIME,
    bool: [None, SECRET, 0, 1, 1.0, "true", object()],
    dict: [None, SECRET, 5, [SECRET], [["a", SECRET]], *NOT_JSON.values()],
}


def wrong_values(model: BaseModel, field: str) -> list[Any]:
    value = getattr(model, field)
    if field == "type":
        return [None, SECRET, 5, ["type"], {}, "", "ProjectPainted", f"{value}s", f" {value}", value.encode(), object()]
    if field in {"detail", "output"}:
        return list(NOT_JSON.values())
    if field == "content":
        return WRONG_CONTENT
    if field == "occurred_at":
        return WRONG_TIME
    wrong = WRONG_VALUES.get(type(value), WRONG_ENUMERATION)
    return wrong if type(model).model_fields[field].is_required() else [value for value in wrong if value is not None]


def is_secret_quoted(error: EventEncodeError) -> bool:
    return any(SECRET in shown for shown in (str(error), repr(error), "".join(traceback.format_exception(error))))


def accepted(database: Database, events: list[Any]) -> list[str]:
    """Returns the events that were not refused, and those whose error quotes their content."""
    wrong = []
    for event in events:
        try:
            database.events.append_all([event])
        except EventEncodeError as error:
            if is_secret_quoted(error):
                wrong.append(f"quoted: {error}")
        else:
            wrong.append(f"accepted: {event!r:.300}")
    return wrong


def assert_all_refused(database: Database, wrong: list[Any]) -> None:
    """Checks that the events are refused, also right after valid events of the same classes were stored."""
    assert accepted(database, wrong) == []
    before = database.events.append_all(VALID)
    assert accepted(database, wrong) == []
    assert_unharmed(database, before)


@one_way
def test_a_field_of_a_wrong_type_is_refused(memory: Database, tamper: Tamper) -> None:
    wrong = [
        tamper(event, field, value)
        for event in samples()
        for field in type(event).model_fields
        for value in wrong_values(event, field)
    ]
    assert len(wrong) > 1_000

    assert_all_refused(memory, wrong)


@one_way
def test_a_field_of_a_wrong_type_in_the_content_is_refused(memory: Database, tamper: Tamper) -> None:
    wrong = [
        by_setattr(said(), "content", tamper(content, field, value))
        for content in contents()
        for field in type(content).model_fields
        for value in wrong_values(content, field)
        if not (field == "type" and value == SECRET)  # another test covers this
    ]
    assert len(wrong) > 200

    assert_all_refused(memory, wrong)


def test_a_wrong_tag_of_content_is_refused_without_quoting_it(memory: Database) -> None:
    assert_refused(memory, by_setattr(said(), "content", by_setattr(TextContent(text="x"), "type", SECRET)))


def without(model: Any, field: str) -> Any:
    copy = model.model_copy()
    object.__delattr__(copy, field)
    return copy


def test_an_event_without_a_required_field_is_refused(memory: Database) -> None:
    assert_all_refused(
        memory,
        [
            without(event, name)
            for event in samples()
            for name, field in type(event).model_fields.items()
            if field.is_required()
        ],
    )


def test_an_event_without_a_field_that_has_a_default_is_refused(memory: Database) -> None:
    assert_all_refused(
        memory,
        [
            without(event, name)
            for event in samples()
            for name, field in type(event).model_fields.items()
            if not field.is_required()
        ],
    )


def test_content_without_one_of_its_fields_is_refused(memory: Database) -> None:
    assert_all_refused(
        memory,
        [
            by_setattr(said(), "content", without(content, field))
            for content in contents()
            for field in type(content).model_fields
        ],
    )


@pytest.mark.parametrize("model", EVENT_CLASSES)
def test_an_event_constructed_without_its_fields_is_refused(memory: Database, model: type[BaseModel]) -> None:
    assert_refused(memory, model.model_construct(), reason="it was changed after validation")


@pytest.mark.parametrize("tamper", [by_setattr, by_model_copy])
def test_an_event_with_an_additional_field_is_refused(memory: Database, tamper: Tamper) -> None:
    assert_all_refused(
        memory,
        [
            *(tamper(event, "more", value) for event in samples() for value in (SECRET, None)),
            *(by_setattr(said(), "content", tamper(content, "more", SECRET)) for content in contents()),
        ],
    )


def with_argument(value: Any) -> MessageAppended:
    event = tool_call({"a": 1})
    event.content.arguments["a"] = value  # type: ignore[union-attr]
    return event


def with_item(value: Any) -> ApprovalRequested:
    event = approval({"list": [1]})
    event.detail["list"].append(value)
    return event


@pytest.mark.parametrize("put", [with_argument, with_item], ids=["arguments", "detail"])
def test_a_value_without_a_json_form_that_was_added_later_is_refused(
    memory: Database, put: Callable[[Any], Any]
) -> None:
    assert_all_refused(memory, [put(wrong) for value in NOT_JSON.values() for wrong in (value, [value], {"x": value})])


def broken_rule(**fields: Any) -> ThreadStatusChanged:
    event = ThreadStatusChanged(thread_id=ONE, status="running")
    for field, value in fields.items():
        object.__setattr__(event, field, value)
    return event


class Chatter(TextContent):
    """Would be read back as `TextContent`."""


def with_extra(event: BaseModel) -> BaseModel:
    object.__setattr__(event, "__pydantic_extra__", {"more": SECRET})
    return event


def with_cycle(event: MessageAppended) -> MessageAppended:
    event.content.arguments["again"] = [event.content.arguments]  # type: ignore[union-attr]
    return event


def moved(moment: datetime) -> Any:
    return by_setattr(renamed(SECRET), "occurred_at", moment)


# Most of these events have fields of the right types.
TAMPERED: dict[str, Callable[[], Any]] = {
    "error without a reason": lambda: broken_rule(status=ThreadStatus.ERROR),
    "reason without an error": lambda: broken_rule(error=SECRET),
    "error and reason swapped": lambda: by_setattr(
        ThreadStatusChanged(thread_id=ONE, status="error", error=SECRET), "status", ThreadStatus.IDLE
    ),
    "type of a class with the same fields": lambda: by_setattr(renamed(SECRET), "type", "BranchCreated"),
    "naive time": lambda: moved(NOON.replace(tzinfo=None)),
    "time of another offset": lambda: moved(NOON.astimezone(timezone(timedelta(hours=-5)))),
    "time at an offset of zero": lambda: moved(NOON.replace(tzinfo=timezone(timedelta(0), "GMT"))),
    "lone surrogate": lambda: by_setattr(renamed(), "name", SECRET + "\ud83d"),
    "lone surrogate in content": lambda: by_setattr(
        said(), "content", by_setattr(TextContent(text=""), "text", SECRET + "\ud83d")
    ),
    "cycle in arguments": lambda: with_cycle(tool_call({"a": SECRET})),
    "arguments replaced by a list": lambda: by_setattr(
        said(), "content", by_setattr(tool_call({}).content, "arguments", [SECRET])
    ),
    "arguments replaced by another mapping": lambda: by_setattr(
        said(), "content", by_setattr(tool_call({}).content, "arguments", OrderedDict(a=SECRET))
    ),
    "content replaced by a subclass": lambda: by_setattr(said(), "content", Chatter(text=SECRET)),
    "content replaced by a dict": lambda: by_setattr(said(), "content", {"type": "text", "text": SECRET}),
    "content replaced by an event": lambda: by_setattr(said(), "content", renamed(SECRET)),
    "content tagged as another kind": lambda: by_setattr(
        said(), "content", by_setattr(TextContent(text=SECRET), "type", "thinking")
    ),
    "content without its text": lambda: by_setattr(said(), "content", without(TextContent(text=SECRET), "text")),
    "field in the place that pydantic keeps for more": lambda: with_extra(renamed()),
    "two fields of each other's type": lambda: by_setattr(by_setattr(renamed(), "name", ONE), "project_id", SECRET),
    "two right types, two wrong values": lambda: by_setattr(
        broken_rule(status=ThreadStatus.ERROR), "occurred_at", NOON.replace(tzinfo=None)
    ),
    "two values that are not JSON": lambda: by_setattr(with_item(math.nan), "action", "\udcff"),
    "enumeration of another kind": lambda: by_setattr(
        ThreadCreated(thread_id=ONE, project_id=ONE, provider="claude", model="x", runtime_mode="supervised"),
        "provider",
        RuntimeMode.SUPERVISED,
    ),
}


@pytest.mark.parametrize("tampered", TAMPERED.values(), ids=TAMPERED)
def test_an_event_that_was_changed_later_is_refused(memory: Database, tampered: Callable[[], Any]) -> None:
    assert_refused(memory, tampered())

    memory.events.append_all(VALID)

    assert_refused(memory, tampered())
    assert_refused(memory, renamed(), said(), tampered(), renamed(), index=2)


def test_refused_batches_leave_no_trace_in_any_database(database: Database) -> None:
    assert_refused(database, None)
    assert_refused(database, *samples(), SECRET, *samples(), index=len(PAYLOADS))
    assert_refused(database, *samples(), with_item(object()), *samples(), index=len(PAYLOADS))
    assert_refused(database, renamed(), renamed(), Renamed(project_id=ONE, name=SECRET), index=2)
    assert_refused(database, with_cycle(tool_call({"a": SECRET})))
    assert_refused(database, broken_rule(status=ThreadStatus.ERROR))
    assert_refused(database, renamed(), by_setattr(renamed(), "name", 5), index=1)


def test_changing_the_arguments_of_an_event_does_not_change_the_event(memory: Database) -> None:
    arguments: dict[str, Any] = {"list": [1, {"deep": "yes"}]}
    event, expected = tool_call(arguments), tool_call({"list": [1, {"deep": "yes"}]})

    arguments["list"][1]["deep"] = object()
    arguments["more"] = object()
    (stored,) = memory.events.append_all([event])

    assert stored.event.content == expected.content  # type: ignore[union-attr]
    assert memory.events.replay_all()[0].event.content == expected.content  # type: ignore[union-attr]


def test_changing_an_event_after_the_append_does_not_change_the_log(database: Database) -> None:
    event = tool_call({"list": [1]})
    database.events.append_all([event])

    event.content.arguments["list"].append(2)  # type: ignore[union-attr]
    object.__setattr__(event, "thread_id", "nonsense")

    assert database.events.replay_all()[0].event == tool_call({"list": [1]}).model_copy(
        update={"occurred_at": event.occurred_at}
    )
