from collections.abc import Iterator
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from helpers.event_strategies import CONTENT_CLASSES, message_contents, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from peon.orchestration import (
    Approval,
    Branch,
    Checkpoint,
    Commit,
    Message,
    MessageContent,
    MessageRole,
    Project,
    Provider,
    RuntimeMode,
    Snapshot,
    TextContent,
    ThinkingContent,
    Thread,
    ThreadStatus,
    ThreadSummary,
    ToolCallContent,
    ToolCallMessage,
    ToolResultContent,
    Turn,
    TurnStatus,
)
from peon.orchestration.model import Value, require_intact

CONTENT: TypeAdapter[MessageContent] = TypeAdapter(MessageContent)
HIDDEN = "what the user wrote"
WHEN = "2026-01-02T03:04:05.000006Z"
ONE, TWO, THREE = (str(UUID(int=number)) for number in (1, 2, 3))

CONTENTS: dict[type[Value], dict[str, Any]] = {
    TextContent: {"type": "text", "text": "Hello"},
    ToolCallContent: {"type": "tool_call", "tool_call_id": "call 1", "name": "read", "arguments": {"path": "a"}},
    ToolResultContent: {"type": "tool_result", "tool_call_id": "call 1", "output": [1, None], "is_error": False},
    ThinkingContent: {"type": "thinking", "text": "Hm"},
}

VALUES: dict[type[Value], dict[str, Any]] = CONTENTS | {
    Project: {"id": ONE, "name": "peon", "path": "/work", "created_at": WHEN},
    Thread: {
        "id": ONE,
        "project_id": TWO,
        "title": None,
        "provider": "claude",
        "model": "large",
        "runtime_mode": "supervised",
        "status": "idle",
        "error": None,
        "created_at": WHEN,
        "updated_at": WHEN,
    },
    ThreadSummary: {
        "id": ONE,
        "project_id": TWO,
        "title": None,
        "provider": "claude",
        "model": "large",
        "runtime_mode": "supervised",
        "status": "idle",
        "error": None,
        "created_at": WHEN,
        "updated_at": WHEN,
        "first_words": "Which tides",
        "turn_count": 1,
        "message_count": 2,
        "pending_approvals": 0,
        "last_sequence": 9,
    },
    Turn: {
        "id": ONE,
        "thread_id": TWO,
        "status": "running",
        "error": None,
        "started_at": WHEN,
        "completed_at": None,
    },
    Message: {
        "id": ONE,
        "turn_id": TWO,
        "role": "user",
        "content": {"type": "text", "text": "Hello"},
        "created_at": WHEN,
    },
    ToolCallMessage: {
        "id": ONE,
        "turn_id": TWO,
        "role": "assistant",
        "content": CONTENTS[ToolCallContent],
        "created_at": WHEN,
    },
    Checkpoint: {
        "id": ONE,
        "thread_id": TWO,
        "turn_id": THREE,
        "git_ref": "refs/peon/1",
        "created_at": WHEN,
        "restored_at": None,
    },
    Approval: {
        "id": ONE,
        "thread_id": TWO,
        "turn_id": THREE,
        "action": "write",
        "detail": {"path": "tides.csv"},
        "status": "pending",
        "reason": None,
        "requested_at": WHEN,
        "decided_at": None,
    },
    Commit: {"sequence": 1, "thread_id": ONE, "hash": "0" * 40, "message": "Adds the tides", "committed_at": WHEN},
    Branch: {"thread_id": ONE, "name": "tides", "created_at": WHEN, "remote": None, "pushed_at": None},
    Snapshot: {
        "sequence": 0,
        "projects": [],
        "threads": [],
        "turns": [],
        "messages": [],
        "checkpoints": [],
        "pending_approvals": [],
        "commits": [],
        "branches": [],
        "selected_thread_id": None,
    },
}

MAY_BE_MISSING = {"type", "restored_at"}

every_value = pytest.mark.parametrize("model", VALUES, ids=lambda model: model.__name__)
every_content = pytest.mark.parametrize("model", CONTENTS, ids=lambda model: model.__name__)


def subclasses(model: type[Value]) -> Iterator[type[Value]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def test_these_are_all_the_values() -> None:
    assert {model for model in subclasses(Value) if model.__module__ == Value.__module__} == VALUES.keys()


@pytest.mark.parametrize(
    ("enumeration", "values"),
    [
        (Provider, ["claude", "codex"]),
        (RuntimeMode, ["full_access", "supervised"]),
        (ThreadStatus, ["idle", "running", "awaiting_approval", "completed", "error"]),
        (TurnStatus, ["running", "completed", "interrupted", "failed"]),
        (MessageRole, ["user", "assistant", "tool", "system"]),
    ],
)
def test_an_enumeration_has_exactly_these_values(enumeration: type[StrEnum], values: list[str]) -> None:
    assert [member.value for member in enumeration] == values
    # Iteration leaves out aliases.
    assert len(enumeration.__members__) == len(values)


@every_value
def test_a_value_has_exactly_these_fields(model: type[Value]) -> None:
    assert model.model_validate(VALUES[model]).model_dump(mode="json") == VALUES[model]


@every_value
def test_a_value_is_read_back_from_json_equal(model: type[Value]) -> None:
    value = model.model_validate(VALUES[model])
    back = model.model_validate_json(value.model_dump_json())
    assert back == value
    assert repr(back) == repr(value)


@every_value
def test_a_value_is_frozen(model: type[Value]) -> None:
    value = model.model_validate(VALUES[model])
    before = repr(value)
    for name in model.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(value, name, getattr(value, name))
        with pytest.raises(ValidationError, match="frozen"):
            delattr(value, name)
    with pytest.raises(ValidationError):
        value.unknown = 1  # type: ignore[attr-defined]
    assert repr(value) == before


@every_value
def test_an_unknown_field_is_refused(model: type[Value]) -> None:
    with pytest.raises(ValidationError, match=r"unknown\s+Extra inputs are not permitted"):
        model.model_validate({**VALUES[model], "unknown": 1})


@every_value
def test_only_the_type_and_newer_fields_may_be_missing(model: type[Value]) -> None:
    for name in VALUES[model].keys() - MAY_BE_MISSING:
        fields = {key: value for key, value in VALUES[model].items() if key != name}
        with pytest.raises(ValidationError, match=rf"{name}\s+Field required"):
            model.model_validate(fields)


@every_value
def test_an_error_does_not_show_the_input(model: type[Value]) -> None:
    for name in VALUES[model].keys() - {"type"}:
        with pytest.raises(ValidationError) as caught:
            model.model_validate({**VALUES[model], name: object(), "unknown": HIDDEN, "created_at": HIDDEN})
        assert "unknown" in str(caught.value)
        assert HIDDEN not in str(caught.value)
        assert "input_value" not in str(caught.value)


@every_value
def test_values_are_compared_by_value(model: type[Value]) -> None:
    assert model.model_validate(VALUES[model]) == model.model_validate(VALUES[model])
    other = next(other for other in VALUES if other is not model)
    assert model.model_validate(VALUES[model]) != other.model_validate(VALUES[other])


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (Project, "created_at"),
        (Thread, "created_at"),
        (Thread, "updated_at"),
        (Turn, "started_at"),
        (Turn, "completed_at"),
        (Message, "created_at"),
        (Checkpoint, "created_at"),
    ],
)
def test_a_naive_time_is_refused(model: type[Value], field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\s+Input should have timezone info"):
        model.model_validate({**VALUES[model], field: "2026-01-02T03:04:05"})


# Content


def test_these_are_all_the_contents() -> None:
    assert set(CONTENT_CLASSES) == CONTENTS.keys()


@every_content
def test_the_type_selects_the_class_of_content(model: type[Value]) -> None:
    assert type(CONTENT.validate_python(CONTENTS[model])) is model
    assert CONTENT.validate_python(CONTENTS[model]) == model.model_validate(CONTENTS[model])


def test_text_and_thinking_differ_only_in_type() -> None:
    assert type(CONTENT.validate_json('{"type": "text", "text": "a"}')) is TextContent
    assert type(CONTENT.validate_json('{"type": "thinking", "text": "a"}')) is ThinkingContent
    with pytest.raises(ValidationError):
        TextContent.model_validate({"type": "thinking", "text": "a"})


@every_content
def test_the_class_sets_its_type_by_default(model: type[Value]) -> None:
    fields = {name: value for name, value in CONTENTS[model].items() if name != "type"}
    assert model.model_validate(fields) == model.model_validate(CONTENTS[model])


@every_content
def test_content_without_its_type_is_refused(model: type[Value]) -> None:
    fields = {name: value for name, value in CONTENTS[model].items() if name != "type"}
    with pytest.raises(ValidationError, match="type"):
        CONTENT.validate_python(fields)


@pytest.mark.parametrize("name", ["image", "Text", "TextContent", "", None, 1])
def test_content_of_an_unknown_type_is_refused(name: object) -> None:
    with pytest.raises(ValidationError, match="tag"):
        CONTENT.validate_python({"type": name, "text": "a"})


@every_content
def test_content_with_the_fields_of_another_type_is_refused(model: type[Value]) -> None:
    for other, fields in CONTENTS.items():
        if fields.keys() != CONTENTS[model].keys():
            with pytest.raises(ValidationError):
                CONTENT.validate_python({**fields, "type": CONTENTS[model]["type"]})
            assert type(CONTENT.validate_python(fields)) is other


@settings(deadline=None)
@given(message_contents)
def test_any_content_is_read_back_from_json_exactly(content: MessageContent) -> None:
    back = CONTENT.validate_json(CONTENT.dump_json(content))
    assert back == content
    # Equality is not enough for JSON values: 1 == 1.0 == True.
    assert repr(back) == repr(content)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_tool_call_keeps_a_copy_of_its_arguments(data: st.DataObject) -> None:
    given_arguments = data.draw(values_of(ToolCallContent)).arguments
    content = ToolCallContent(tool_call_id="1", name="read", arguments=given_arguments)
    before = repr(content)
    given_arguments["another"] = 1
    given_arguments.pop(next(iter(given_arguments)))
    assert repr(content) == before


@pytest.mark.parametrize("arguments", [None, [], "{}", 1, {1: 2}, {"a": (1,)}, {"a": float("nan")}, {"\ud800": 1}])
def test_arguments_that_are_not_an_exact_json_object_are_refused(arguments: Any) -> None:
    with pytest.raises(ValidationError, match="arguments"):
        ToolCallContent(tool_call_id="1", name="read", arguments=arguments)


@pytest.mark.parametrize("output", [(1,), b"a", float("inf"), {1: 2}, ["\ud800"], TextContent(text="a")])
def test_an_output_that_is_not_exact_json_is_refused(output: Any) -> None:
    with pytest.raises(ValidationError, match="output"):
        ToolResultContent(tool_call_id="1", output=output, is_error=False)


def test_an_output_that_was_changed_to_something_else_than_json_is_not_written() -> None:
    content = ToolResultContent(tool_call_id="1", output=[1], is_error=False)
    content.output.append((2,))
    with pytest.raises(PydanticSerializationError, match="a tuple is not a JSON value"):
        content.model_dump_json()


@every_content
def test_content_with_a_missing_field_does_not_get_into_a_message(model: type[Value]) -> None:
    for name in CONTENTS[model].keys() - {"type"}:
        fields = {key: value for key, value in CONTENTS[model].items() if key != name}
        with pytest.raises(ValidationError, match=rf"{name}\s+Field required"):
            Message.model_validate({**VALUES[Message], "content": model.model_construct(**fields)})


# Values changed behind pydantic's back


@every_value
def test_an_unchanged_value_is_intact(model: type[Value]) -> None:
    for _ in range(2):
        require_intact(model.model_validate(VALUES[model]))


@every_value
def test_a_value_without_a_field_is_not_intact(model: type[Value]) -> None:
    for name in VALUES[model].keys() - MAY_BE_MISSING:
        value = model.model_validate(VALUES[model])
        require_intact(value)
        del value.__dict__[name]
        with pytest.raises(ValidationError, match=rf"{name}\s+Field required"):
            require_intact(value)


@every_value
def test_a_value_with_an_additional_field_is_not_intact(model: type[Value]) -> None:
    value = model.model_validate(VALUES[model])
    require_intact(value)
    value.__dict__["unknown"] = 1
    with pytest.raises(ValidationError, match=r"unknown\s+Extra inputs are not permitted"):
        require_intact(value)


@every_value
def test_a_value_with_a_renamed_field_is_not_intact(model: type[Value]) -> None:
    for name in VALUES[model].keys() - MAY_BE_MISSING:
        value = model.model_validate(VALUES[model])
        require_intact(value)
        fields = {"unknown" if key == name else key: field for key, field in value.__dict__.items()}
        value.__dict__.clear()
        value.__dict__.update(fields)
        with pytest.raises(ValidationError, match=rf"{name}\s+Field required"):
            require_intact(value)


@every_value
def test_a_value_with_a_field_of_another_class_is_not_intact(model: type[Value]) -> None:
    for name in VALUES[model].keys() - {"type"}:
        value = model.model_validate(VALUES[model])
        require_intact(value)
        value.__dict__[name] = object()
        # Twice: a value that failed the check must not be remembered as intact.
        for _ in range(2):
            with pytest.raises(ValidationError, match=name):
                require_intact(value)


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (Thread, "id", ONE),
        (Thread, "status", "idle"),
        (Thread, "created_at", WHEN),
        (Turn, "completed_at", 0),
        (ToolResultContent, "is_error", 1),
        (ToolResultContent, "is_error", "false"),
    ],
)
def test_a_value_that_validation_would_convert_is_not_intact(model: type[Value], field: str, value: object) -> None:
    changed = model.model_validate(VALUES[model]).model_copy(update={field: value})
    with pytest.raises(ValidationError, match=field):
        require_intact(changed)


@every_content
def test_content_with_the_type_of_another_is_not_intact(model: type[Value]) -> None:
    for name in ("image", *(fields["type"] for other, fields in CONTENTS.items() if other is not model)):
        changed = model.model_validate(CONTENTS[model]).model_copy(update={"type": name})
        with pytest.raises(ValidationError, match="type"):
            require_intact(changed)
