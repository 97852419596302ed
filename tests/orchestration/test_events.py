from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, get_type_hints
from uuid import UUID

import pytest
from helpers.event_strategies import EVENT_CLASSES, json_values, orchestration_events, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from peon.orchestration import (
    ApprovalRequested,
    ChangesCommitted,
    Event,
    MessageAppended,
    OrchestrationEvent,
    ProjectCreated,
    ProjectDeleted,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    event_type_name,
)
from peon.orchestration.model import Value

EVENT: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)
ONE, TWO, THREE, FOUR = (UUID(int=number) for number in (1, 2, 3, 4))
MESSAGE: dict[str, Any] = {"message_id": ONE, "turn_id": TWO, "thread_id": THREE, "role": "assistant"}
APPROVAL: dict[str, Any] = {"approval_id": ONE, "turn_id": TWO, "thread_id": THREE, "action": "run"}

# Logs contain these names forever: a change here changes the format.
FIELDS = {
    "ProjectCreated": "project_id name path",
    "ProjectRenamed": "project_id name",
    "ProjectDeleted": "project_id",
    "ThreadCreated": "thread_id project_id title provider model runtime_mode",
    "ThreadDeleted": "thread_id",
    "ThreadSelected": "thread_id",
    "ThreadStatusChanged": "thread_id status error",
    "TurnStarted": "turn_id thread_id",
    "TurnCompleted": "turn_id thread_id",
    "TurnInterrupted": "turn_id thread_id",
    "TurnFailed": "turn_id thread_id error",
    "MessageAppended": "message_id turn_id thread_id role content",
    "MessageChunkReceived": "message_id turn_id thread_id delta",
    "ApprovalRequested": "approval_id turn_id thread_id action detail",
    "ActionApproved": "approval_id turn_id thread_id",
    "ActionRejected": "approval_id turn_id thread_id reason",
    "CheckpointCreated": "checkpoint_id thread_id turn_id git_ref",
    "CheckpointRestored": "checkpoint_id thread_id",
    "ChangesCommitted": "thread_id commit message",
    "BranchCreated": "thread_id name",
    "BranchPushed": "thread_id name remote",
}

OPTIONAL = {("ThreadCreated", "title"), ("ThreadStatusChanged", "error"), ("ActionRejected", "reason")}

every_event = pytest.mark.parametrize("model", EVENT_CLASSES, ids=lambda model: model.__name__)
few = settings(deadline=None, max_examples=10)


def fields_of(event: BaseModel) -> dict[str, Any]:
    return dict(event)


# The format of the log


def test_the_log_knows_exactly_these_events_and_fields() -> None:
    assert len(FIELDS) == 21
    assert {model.__name__: set(model.model_fields) for model in EVENT_CLASSES} == {
        name: {"type", "occurred_at", *fields.split()} for name, fields in FIELDS.items()
    }


@every_event
def test_all_fields_are_written_under_their_names(model: type[Event]) -> None:
    @few
    @given(values_of(model))
    def check(event: Event) -> None:
        written = EVENT.dump_python(event, mode="json")  # type: ignore[arg-type]
        assert written.keys() == {"type", "occurred_at", *FIELDS[model.__name__].split()}
        assert written["type"] == model.__name__

    check()


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (
            ThreadCreated(
                thread_id=ONE,
                project_id=TWO,
                provider="claude",
                model="large",
                runtime_mode="full_access",
                occurred_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
            ),
            (
                '{"type":"ThreadCreated","occurred_at":"2026-01-02T03:04:05.000006Z",'
                '"thread_id":"00000000-0000-0000-0000-000000000001","project_id":"00000000-0000-0000-0000-000000000002",'
                '"title":null,"provider":"claude","model":"large","runtime_mode":"full_access"}'
            ),
        ),
        (
            ThreadStatusChanged(
                thread_id=ONE, status="error", error="é", occurred_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
            ),
            (
                '{"type":"ThreadStatusChanged","occurred_at":"2026-01-02T03:04:05Z",'
                '"thread_id":"00000000-0000-0000-0000-000000000001","status":"error","error":"é"}'
            ),
        ),
        (
            MessageAppended(
                message_id=ONE,
                turn_id=TWO,
                thread_id=THREE,
                role="tool",
                content=ToolResultContent(tool_call_id="call 1", output={"b": [1, 1.0, None], "a": "x"}, is_error=True),
                occurred_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-2))),
            ),
            (
                '{"type":"MessageAppended","occurred_at":"2026-01-02T05:04:05Z",'
                '"message_id":"00000000-0000-0000-0000-000000000001","turn_id":"00000000-0000-0000-0000-000000000002",'
                '"thread_id":"00000000-0000-0000-0000-000000000003","role":"tool","content":{"type":"tool_result",'
                '"tool_call_id":"call 1","output":{"b":[1,1.0,null],"a":"x"},"is_error":true}}'
            ),
        ),
    ],
    ids=["ThreadCreated", "ThreadStatusChanged", "MessageAppended"],
)
def test_the_json_of_an_event_does_not_change(event: OrchestrationEvent, payload: str) -> None:
    assert EVENT.dump_json(event).decode() == payload
    assert EVENT.validate_json(payload) == event


@every_event
def test_only_these_fields_have_defaults(model: type[Event]) -> None:
    optional = {field for name, field in OPTIONAL if name == model.__name__}
    assert {name for name, field in model.model_fields.items() if not field.is_required()} == {
        "type",
        "occurred_at",
        *optional,
        *(["schema_version"] if "schema_version" in model.model_fields else []),
    }
    for name in optional:
        assert model.model_fields[name].get_default() is None


# Every event


@every_event
def test_the_type_of_an_event_is_the_name_of_its_class(model: type[Event]) -> None:
    assert event_type_name(model) == model.__name__

    @few
    @given(values_of(model))
    def check(event: Event) -> None:
        assert event_type_name(event) == event.type == type(event).__name__ == model.__name__

    check()


@every_event
def test_an_event_is_frozen(model: type[Event]) -> None:
    @few
    @given(values_of(model))
    def check(event: Event) -> None:
        before = repr(event)
        for name in model.model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(event, name, getattr(event, name))
            with pytest.raises(ValidationError, match="frozen"):
                delattr(event, name)
        with pytest.raises(ValidationError):
            event.unknown = 1  # type: ignore[attr-defined]
        assert repr(event) == before

    check()


@every_event
def test_an_unknown_field_is_refused(model: type[Event]) -> None:
    @few
    @given(values_of(model))
    def check(event: Event) -> None:
        with pytest.raises(ValidationError, match=r"unknown\s+Extra inputs are not permitted"):
            model.model_validate({**fields_of(event), "unknown": 1})
        payload = event.model_dump_json().removesuffix("}") + ',"unknown":1}'
        with pytest.raises(ValidationError, match=r"unknown\s+Extra inputs are not permitted"):
            EVENT.validate_json(payload)

    check()


@every_event
def test_a_missing_field_is_refused(model: type[Event]) -> None:
    @few
    @given(values_of(model))
    def check(event: Event) -> None:
        for missing, field in model.model_fields.items():
            if field.is_required():
                fields = {name: value for name, value in fields_of(event).items() if name != missing}
                with pytest.raises(ValidationError, match=rf"{missing}\s+Field required"):
                    EVENT.validate_python(fields)

    check()


@every_event
def test_the_type_of_another_event_is_refused(model: type[Event]) -> None:
    @few
    @given(
        values_of(model),
        st.sampled_from([*(name for name in FIELDS if name != model.__name__), "", "Event", model.__name__.lower()]),
    )
    def check(event: Event, name: str) -> None:
        with pytest.raises(ValidationError, match="type"):
            model.model_validate({**fields_of(event), "type": name})

    check()


@every_event
def test_an_event_is_read_back_from_json_exactly(model: type[Event]) -> None:
    @settings(deadline=None, max_examples=30)
    @given(values_of(model))
    def check(event: Event) -> None:
        back = EVENT.validate_json(EVENT.dump_json(event))  # type: ignore[arg-type]
        assert type(back) is model
        assert back == event
        # Equality is not enough for JSON values: 1 == 1.0 == True.
        assert repr(back) == repr(event)

    check()


@settings(deadline=None)
@given(orchestration_events)
def test_any_event_is_read_back_from_python_and_from_json(event: OrchestrationEvent) -> None:
    assert EVENT.validate_python(EVENT.dump_python(event)) == event
    assert EVENT.validate_python(EVENT.dump_python(event, mode="json")) == event
    assert EVENT.validate_json(EVENT.dump_json(event)) == event


@settings(deadline=None)
@given(orchestration_events)
def test_any_event_is_in_utc(event: OrchestrationEvent) -> None:
    assert event.occurred_at.tzinfo is UTC


@pytest.mark.parametrize("name", ["ProjectArchived", "projectdeleted", "Event", "", None])
def test_an_event_of_an_unknown_type_is_refused(name: object) -> None:
    with pytest.raises(ValidationError, match="tag"):
        EVENT.validate_python({"type": name, "project_id": ONE})


def test_an_event_without_its_type_is_refused() -> None:
    assert ProjectDeleted.model_validate({"project_id": ONE}).type == "ProjectDeleted"
    with pytest.raises(ValidationError, match="type"):
        EVENT.validate_python({"project_id": ONE})


@every_event
def test_an_error_does_not_show_the_input(model: type[Event]) -> None:
    hidden = "what the user wrote"
    wrong: dict[str, Any] = {name: {"a": object(), "b": hidden} for name in FIELDS[model.__name__].split()}
    for fields in ({"unknown": hidden}, {**wrong, "occurred_at": hidden}):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(fields)
        assert model.__name__ in str(caught.value)
        assert hidden not in str(caught.value)
        assert "input_value" not in str(caught.value)


# occurred_at


@every_event
def test_an_event_occurs_now_in_utc_unless_told_otherwise(model: type[Event]) -> None:
    @settings(deadline=None, max_examples=3)
    @given(values_of(model))
    def check(event: Event) -> None:
        fields = {name: value for name, value in fields_of(event).items() if name != "occurred_at"}
        before = datetime.now(UTC)
        occurred_at = model.model_validate(fields).occurred_at
        assert before <= occurred_at <= datetime.now(UTC)
        assert occurred_at.tzinfo is UTC

    check()


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        ProjectDeleted(project_id=ONE, occurred_at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_time_that_is_not_in_utc_is_not_written() -> None:
    event = ProjectDeleted(project_id=ONE)
    for moment in (
        datetime(2026, 1, 1),  # noqa: DTZ001
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    ):
        with pytest.raises(PydanticSerializationError, match="not in UTC"):
            event.model_copy(update={"occurred_at": moment}).model_dump_json()


# ThreadStatusChanged


@pytest.mark.parametrize("error", ["", "no network"])
def test_the_status_error_requires_an_error(error: str) -> None:
    assert ThreadStatusChanged(thread_id=ONE, status=ThreadStatus.ERROR, error=error).error == error


@pytest.mark.parametrize("status", [status for status in ThreadStatus if status is not ThreadStatus.ERROR])
def test_other_statuses_allow_no_error(status: ThreadStatus) -> None:
    event = ThreadStatusChanged(thread_id=ONE, status=status)
    assert (event.status, event.error) == (status, None)


def mismatches() -> list[tuple[ThreadStatus, str | None]]:
    others = [status for status in ThreadStatus if status is not ThreadStatus.ERROR]
    return [(ThreadStatus.ERROR, None), *((status, error) for status in others for error in ("", "no network"))]


@pytest.mark.parametrize(("status", "error"), mismatches())
def test_a_status_and_an_error_that_do_not_match_are_refused(status: ThreadStatus, error: str | None) -> None:
    with pytest.raises(ValidationError, match="if and only if"):
        ThreadStatusChanged(thread_id=ONE, status=status, error=error)
    with pytest.raises(ValidationError, match="if and only if"):
        EVENT.validate_python({"type": "ThreadStatusChanged", "thread_id": ONE, "status": status, "error": error})


@pytest.mark.parametrize(("status", "error"), mismatches())
def test_a_status_and_an_error_that_do_not_match_are_not_written(status: ThreadStatus, error: str | None) -> None:
    event = ThreadStatusChanged(thread_id=ONE, status=ThreadStatus.IDLE)
    changed = event.model_copy(update={"status": status, "error": error})
    with pytest.raises(PydanticSerializationError, match="if and only if"):
        changed.model_dump_json()


# Content and JSON values in events


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (TextContent, {}),
        (ThinkingContent, {}),
        (ToolCallContent, {"tool_call_id": "1", "name": "read"}),
        (ToolCallContent, {"name": "read", "arguments": {}}),
        (ToolResultContent, {"tool_call_id": "1", "output": None}),
        (ToolResultContent, {"output": None, "is_error": False}),
    ],
)
def test_content_with_a_missing_field_is_refused(model: type[Any], fields: dict[str, Any]) -> None:
    content = model.model_construct(**fields)
    with pytest.raises(ValidationError, match="Field required"):
        MessageAppended(**MESSAGE, content=content)
    event = MessageAppended(**MESSAGE, content=TextContent(text="a"))
    with pytest.raises(PydanticSerializationError, match=r"missing|required"):
        event.model_copy(update={"content": content}).model_dump_json()


def test_content_with_an_additional_field_is_refused() -> None:
    class FormattedContent(TextContent):
        format: str = "markdown"

    content = FormattedContent(text="a")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        MessageAppended(**MESSAGE, content=content)
    event = MessageAppended(**MESSAGE, content=TextContent(text="a"))
    event.content.__dict__["format"] = "markdown"
    with pytest.raises(PydanticSerializationError, match=r"unknown|Extra inputs"):
        event.model_dump_json()


def test_a_later_change_of_the_content_does_not_change_the_event() -> None:
    content = ToolCallContent(tool_call_id="1", name="read", arguments={"paths": ["a"]})
    event = MessageAppended(**MESSAGE, content=content)
    content.arguments["paths"].append("b")
    content.arguments["more"] = True
    assert event.content == ToolCallContent(tool_call_id="1", name="read", arguments={"paths": ["a"]})


@settings(deadline=None)
@given(json_values)
def test_any_json_value_is_read_back_exactly(value: Any) -> None:
    approval = ApprovalRequested(**APPROVAL, detail=value)
    call = MessageAppended(
        **MESSAGE, content=ToolCallContent(tool_call_id="1", name="read", arguments={"value": value})
    )
    result = MessageAppended(**MESSAGE, content=ToolResultContent(tool_call_id="1", output=value, is_error=False))
    for event in (approval, call, result):
        assert repr(EVENT.validate_json(EVENT.dump_json(event))) == repr(event)
    assert repr(approval.detail) == repr(value)


@pytest.mark.parametrize("value", [(1,), b"a", float("nan"), {1: 2}, "\ud800", ThreadStatus.IDLE, ONE])
def test_a_value_that_is_not_exact_json_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="detail"):
        ApprovalRequested(**APPROVAL, detail=[value])
    event = ApprovalRequested(**APPROVAL, detail=[])
    event.detail.append(value)
    with pytest.raises(PydanticSerializationError):
        event.model_dump_json()


# Text


def text_fields() -> list[tuple[type[Event], str]]:
    return [
        (model, name)
        for model in EVENT_CLASSES
        for name, hint in get_type_hints(model).items()
        if name in model.model_fields and hint in (str, str | None)
    ]


REFUSED = [(model, name) for model, name in text_fields() if name != "error"]


@pytest.mark.parametrize(("model", "field"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_a_lone_surrogate_is_refused_at_the_latest_when_the_event_is_written(model: type[Event], field: str) -> None:
    @settings(deadline=None, max_examples=3)
    @given(values_of(model))
    def check(event: Event) -> None:
        fields = fields_of(event)
        if model is ThreadStatusChanged:
            fields["status"] = "error"
        assert '"fine"' in model.model_validate({**fields, field: "fine"}).model_dump_json()
        with pytest.raises((ValidationError, PydanticSerializationError), match="surrogate"):
            model.model_validate({**fields, field: "a\ud800"}).model_dump_json()

    check()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (TextContent, {"text": "a\udfff"}),
        (ThinkingContent, {"text": "a\udfff"}),
        (ToolCallContent, {"tool_call_id": "\ud800", "name": "read", "arguments": {}}),
        (ToolCallContent, {"tool_call_id": "1", "name": "\ud800", "arguments": {}}),
        (ToolCallContent, {"tool_call_id": "1", "name": "read", "arguments": {"\ud800": 1}}),
        (ToolResultContent, {"tool_call_id": "\ud800", "output": 1, "is_error": False}),
        (ToolResultContent, {"tool_call_id": "1", "output": "\ud800", "is_error": False}),
    ],
)
def test_a_lone_surrogate_in_content_is_refused_at_the_latest_when_the_event_is_written(
    model: type[Value], fields: dict[str, Any]
) -> None:
    with pytest.raises((ValidationError, PydanticSerializationError), match="surrogate"):
        MessageAppended(**MESSAGE, content=model(**fields)).model_dump_json()


def test_an_escaped_lone_surrogate_in_json_is_refused() -> None:
    payload = ProjectCreated(project_id=ONE, name="NAME", path="").model_dump_json()
    assert ProjectCreated.model_validate_json(payload.replace("NAME", r"\ud83d\ude00")).name == "😀"
    for surrogate in (r"\ud800", r"\udc00", r"\ude00\ud83d"):
        with pytest.raises(ValidationError, match="Invalid JSON"):
            EVENT.validate_json(payload.replace("NAME", surrogate))


@pytest.mark.parametrize("text", ["", "\0", "\r\n\t", '"\\', "\u2028", "\uffff", "😀", "e\u0301"])
def test_any_other_text_is_read_back(text: str) -> None:
    event = ChangesCommitted(thread_id=ONE, commit="0" * 40, message=text)
    assert EVENT.validate_json(EVENT.dump_json(event)) == event


# event_type_name


class WithoutType(BaseModel):
    name: str = "WithoutType"


class AnyType(BaseModel):
    type: str = "AnyType"


class TwoTypes(BaseModel):
    type: Literal["One", "Two"] = "One"


class NumberType(BaseModel):
    type: Literal[1] = 1


class TypeOrNone(BaseModel):
    type: Literal["One"] | None = None


class PlainClass:
    type: Literal["PlainClass"] = "PlainClass"


@pytest.mark.parametrize("model", [WithoutType, AnyType, TwoTypes, NumberType, TypeOrNone, PlainClass])
def test_a_class_that_is_not_an_event_has_no_type_name(model: Any) -> None:
    for candidate in (model, model()):
        with pytest.raises(TypeError, match=f"{model.__name__} is not an event"):
            event_type_name(candidate)


@pytest.mark.parametrize("other", [Event, Value, BaseModel, int, 1, None, "ProjectDeleted", {"type": "ProjectDeleted"}])
def test_other_things_have_no_type_name(other: Any) -> None:
    with pytest.raises(TypeError, match="is not an event"):
        event_type_name(other)


def test_the_union_of_events_has_no_type_name() -> None:
    with pytest.raises(TypeError, match="is not an event"):
        event_type_name(OrchestrationEvent)  # type: ignore[arg-type]


def test_an_event_of_an_application_has_a_type_name() -> None:
    class Renamed(BaseModel):
        type: Literal["app.renamed"] = "app.renamed"

    assert event_type_name(Renamed) == event_type_name(Renamed()) == "app.renamed"
