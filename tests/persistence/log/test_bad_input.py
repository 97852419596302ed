"""Events that are hard or wrong: each comes back exactly as it was, or is refused before anything is stored."""

import math
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.event_strategies import EVENT_CLASSES
from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy import insert, text

from peon.orchestration import (
    ApprovalRequested,
    MessageAppended,
    OrchestrationEvent,
    ProjectRenamed,
    Provider,
    RuntimeMode,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    Turn,
    TurnStatus,
)
from peon.payloads import MAXIMUM_INTEGER_BITS, MAXIMUM_JSON_DEPTH
from peon.persistence import Database, EventDecodeError, EventEncodeError, StoreUnavailable
from peon.persistence.schema import events as log


@pytest.fixture
def database(log_alone: Database) -> Database:
    return log_alone


RECORDED = Path(__file__).parents[2] / "data" / "payloads" / "orchestration_v1.jsonl"
PAYLOADS = RECORDED.read_bytes().decode().removesuffix("\n").split("\n")
EVENT: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)

SECRET = "5a1t-0f-the-5ea"  # noqa: S105 - stands for what users and agents write
ONE = UUID(int=1)
NOON = datetime(2025, 3, 14, 12, tzinfo=UTC)


def samples() -> list[OrchestrationEvent]:
    """Events of every class, and messages of every kind of content; new ones each time, to be tampered with."""
    return [EVENT.validate_json(payload) for payload in PAYLOADS]


def renamed(name: str = "tide-table") -> ProjectRenamed:
    return ProjectRenamed(project_id=ONE, name=name)


def message(content: Any) -> MessageAppended:
    return MessageAppended(message_id=ONE, turn_id=ONE, thread_id=ONE, role="assistant", content=content)


def said(text: str = "x") -> MessageAppended:
    return message(TextContent(text=text))


def tool_call(arguments: Any) -> MessageAppended:
    return message(ToolCallContent(tool_call_id="1", name="run", arguments=arguments))


def tool_result(output: Any) -> MessageAppended:
    return message(ToolResultContent(tool_call_id="1", output=output, is_error=False))


def approval(detail: Any) -> ApprovalRequested:
    return ApprovalRequested(approval_id=ONE, turn_id=ONE, thread_id=ONE, action="run", detail=detail)


def in_every_json_field(values: Iterable[Any]) -> list[Any]:
    return [holding(value) for value in values for holding in (in_arguments, tool_result, approval)]


def in_arguments(value: Any) -> MessageAppended:
    return tool_call({"value": value})


@pytest.fixture
def memory() -> Iterator[Database]:
    """For what is decided before a database is asked."""
    with Database.open(url="sqlite://", projections=False) as database:
        yield database


def assert_secret_is_kept(error: BaseException) -> None:
    for shown in (str(error), repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in shown


def assert_round_trip(database: Database, events: list[Any]) -> None:
    last = database.events.last_sequence()

    stored = database.events.append_all(events)

    assert [s.sequence for s in stored] == list(range(last + 1, last + 1 + len(events)))
    replayed = database.events.replay_from(last + 1)
    assert [s.event for s in replayed] == events
    assert replayed == stored
    # repr tells apart what == does not: 1, 1.0 and True; 0.0 and -0.0.
    assert [repr(s) for s in replayed] == [repr(s) for s in stored]


def assert_unharmed(database: Database, before: list[Any]) -> None:
    """Nothing was stored since, and the next append is given the next number."""
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


# What is not an event


class Stranger(BaseModel):
    type: str = "ProjectRenamed"
    project_id: UUID = ONE
    name: str = SECRET


class Renamed(ProjectRenamed):
    pass


class RenamedAndMore(ProjectRenamed):
    more: str = SECRET


NOT_EVENTS: dict[str, tuple[Any, str]] = {
    "text": (SECRET, "it is not an event"),
    "None": (None, "it is not an event"),
    "number": (5, "it is not an event"),
    "dict": ({"type": "ProjectRenamed", "project_id": str(ONE), "name": SECRET}, "it is not an event"),
    "payload": (renamed(SECRET).model_dump_json(), "it is not an event"),
    "list of events": ([renamed(SECRET)], "it is not an event"),
    "class of an event": (ProjectRenamed, "it is not an event"),
    "another model": (Stranger(), "its class is not in the codec's union of events"),
    "value of the domain": (TextContent(text=SECRET), "its class is not in the codec's union of events"),
    "subclass of an event": (Renamed(project_id=ONE, name=SECRET), "its class is not in the codec's union of events"),
    "subclass that has more": (
        RenamedAndMore(project_id=ONE, name="x"),
        "its class is not in the codec's union of events",
    ),
}


@pytest.mark.parametrize(("thing", "reason"), NOT_EVENTS.values(), ids=NOT_EVENTS)
@pytest.mark.parametrize("index", [0, 2])
def test_what_is_not_an_event_is_refused_with_its_whole_batch(
    memory: Database, thing: Any, reason: str, index: int
) -> None:
    memory.events.append_all([renamed()])
    batch: list[Any] = [renamed(), renamed(), renamed()]
    batch[index] = thing

    assert_refused(memory, *batch, index=index, reason=reason)


def test_the_first_of_two_wrong_events_is_named(memory: Database) -> None:
    assert_refused(memory, renamed(), None, SECRET, index=1)


def test_a_single_event_in_place_of_a_list_is_refused(database: Database) -> None:
    with pytest.raises(TypeError, match=r"append_all takes a list of events: \[ProjectRenamed\(…\)\]") as caught:
        database.events.append_all(renamed(SECRET))  # type: ignore[arg-type]

    assert_secret_is_kept(caught.value)
    assert_unharmed(database, [])


@pytest.mark.parametrize("batch", [None, 5, ProjectRenamed])
def test_what_is_not_a_list_at_all_is_refused(memory: Database, batch: Any) -> None:
    with pytest.raises(TypeError):
        memory.events.append_all(batch)

    assert_unharmed(memory, [])


@pytest.mark.parametrize("batch", [SECRET, SECRET.encode(), {"type": SECRET}])
def test_a_list_of_something_else_is_refused(memory: Database, batch: Any) -> None:
    with pytest.raises(EventEncodeError, match="it is not an event") as caught:
        memory.events.append_all(batch)

    assert (caught.value.index, caught.value.event_type) == (0, type(next(iter(batch))).__name__)
    assert_secret_is_kept(caught.value)
    assert_unharmed(memory, [])


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda events: (event for event in events)])
def test_events_may_come_from_any_iterable(database: Database, kind: Callable[[list[Any]], Any]) -> None:
    events = [renamed("a"), renamed("b"), renamed("c")]

    stored = database.events.append_all(kind(events))

    assert [(s.sequence, s.event) for s in stored] == [(1, events[0]), (2, events[1]), (3, events[2])]
    assert database.events.replay_all() == stored


def test_nothing_is_stored_of_a_generator_that_fails_half_way(database: Database) -> None:
    def generate() -> Iterator[OrchestrationEvent]:
        yield renamed()
        raise LookupError("half-way")

    with pytest.raises(LookupError, match="half-way"):
        database.events.append_all(generate())

    assert_unharmed(database, [])


def test_a_generator_may_read_and_append_itself(database: Database) -> None:
    def generate() -> Iterator[OrchestrationEvent]:
        for name in ("a", "b"):
            database.events.append_all([renamed(name)])
            yield renamed(f"{len(database.events.replay_all())} {name}")

    stored = database.events.append_all(generate())

    assert [s.sequence for s in stored] == [3, 4]
    assert [s.event.name for s in database.events.replay_all()] == ["a", "b", "1 a", "2 b"]  # type: ignore[union-attr]


# Events that were changed behind pydantic's back

Tamper = Callable[[Any, str, Any], Any]


def by_setattr(model: Any, field: str, value: Any) -> Any:
    copy = model.model_copy(deep=True)
    object.__setattr__(copy, field, value)
    return copy


def by_model_copy(model: Any, field: str, value: Any) -> Any:
    return model.model_copy(update={field: value}, deep=True)


def by_model_construct(model: Any, field: str, value: Any) -> Any:
    return type(model).model_construct(**{**dict(model), field: value})


every_way = pytest.mark.parametrize("tamper", [by_setattr, by_model_copy, by_model_construct])


def deep(levels: int) -> Any:
    """That many objects and lists inside of one another."""
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
    """Returns those that were not refused, and those whose refusal gives away what they hold."""
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
    """They are refused also when the same classes, with the same fields, were found right before."""
    assert accepted(database, wrong) == []
    before = database.events.append_all(VALID)
    assert accepted(database, wrong) == []
    assert_unharmed(database, before)


@every_way
def test_a_field_of_a_wrong_type_is_refused(memory: Database, tamper: Tamper) -> None:
    wrong = [
        tamper(event, field, value)
        for event in samples()
        for field in type(event).model_fields
        for value in wrong_values(event, field)
    ]
    assert len(wrong) > 1_000

    assert_all_refused(memory, wrong)


@every_way
def test_a_field_of_a_wrong_type_in_the_content_is_refused(memory: Database, tamper: Tamper) -> None:
    wrong = [
        by_setattr(said(), "content", tamper(content, field, value))
        for content in contents()
        for field in type(content).model_fields
        for value in wrong_values(content, field)
        if not (field == "type" and value == SECRET)  # has a test of its own
    ]
    assert len(wrong) > 200

    assert_all_refused(memory, wrong)


def test_a_wrong_tag_of_content_is_refused_without_quoting_it(memory: Database) -> None:
    assert_refused(memory, by_setattr(said(), "content", by_setattr(TextContent(text="x"), "type", SECRET)))


def without(model: Any, field: str) -> Any:
    copy = model.model_copy()
    object.__delattr__(copy, field)
    return copy


def test_an_event_without_a_field_that_it_must_have_is_refused(memory: Database) -> None:
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
def test_a_value_that_json_cannot_carry_and_was_put_in_later_is_refused(
    memory: Database, put: Callable[[Any], Any]
) -> None:
    assert_all_refused(memory, [put(wrong) for value in NOT_JSON.values() for wrong in (value, [value], {"x": value})])


def broken_rule(**fields: Any) -> ThreadStatusChanged:
    event = ThreadStatusChanged(thread_id=ONE, status="running")
    for field, value in fields.items():
        object.__setattr__(event, field, value)
    return event


class Chatter(TextContent):
    """Would come back as a TextContent."""


def with_extra(event: BaseModel) -> BaseModel:
    object.__setattr__(event, "__pydantic_extra__", {"more": SECRET})
    return event


def with_cycle(event: MessageAppended) -> MessageAppended:
    event.content.arguments["again"] = [event.content.arguments]  # type: ignore[union-attr]
    return event


def moved(moment: datetime) -> Any:
    return by_setattr(renamed(SECRET), "occurred_at", moment)


# Most of these have fields of the very types that they should have.
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


def test_wrong_batches_leave_no_trace_in_any_database(database: Database) -> None:
    assert_refused(database, None)
    assert_refused(database, *samples(), SECRET, *samples(), index=len(PAYLOADS))
    assert_refused(database, *samples(), with_item(object()), *samples(), index=len(PAYLOADS))
    assert_refused(database, renamed(), renamed(), Renamed(project_id=ONE, name=SECRET), index=2)
    assert_refused(database, with_cycle(tool_call({"a": SECRET})))
    assert_refused(database, broken_rule(status=ThreadStatus.ERROR))
    assert_refused(database, renamed(), by_setattr(renamed(), "name", 5), index=1)


def test_a_change_of_what_an_event_was_built_from_does_not_reach_it(memory: Database) -> None:
    arguments: dict[str, Any] = {"list": [1, {"deep": "yes"}]}
    event, expected = tool_call(arguments), tool_call({"list": [1, {"deep": "yes"}]})

    arguments["list"][1]["deep"] = object()
    arguments["more"] = object()
    (stored,) = memory.events.append_all([event])

    assert stored.event.content == expected.content  # type: ignore[union-attr]
    assert memory.events.replay_all()[0].event.content == expected.content  # type: ignore[union-attr]


def test_a_change_after_the_append_does_not_reach_the_log(database: Database) -> None:
    event = tool_call({"list": [1]})
    database.events.append_all([event])

    event.content.arguments["list"].append(2)  # type: ignore[union-attr]
    object.__setattr__(event, "thread_id", "nonsense")

    assert database.events.replay_all()[0].event == tool_call({"list": [1]}).model_copy(
        update={"occurred_at": event.occurred_at}
    )


# Text

TEXTS = {
    "empty": "",
    "NUL": "\0",
    "NUL inside": f"a\0b\0{'c' * 100}",
    "escapes": '"\\/\b\f\n\r\t\\u0000\\n\x1b[31m\x7f\x85',
    "emoji of 4 bytes": "🌊👩‍👩‍👧‍👦🏴󠁧󠁢󠁷󠁬󠁳󠁿",
    "line separators": "a\u2028b\u2029c\x0b\x0c\x1c\r\n",
    "byte order mark": "\ufeffa\ufeff",
    "noncharacters": "\ufffe\uffff\U0010ffff\ufffd",
    "not normalised": "e\u0301 é \ufb01 \uff21 \u212b",
    "right to left": "\u202eabc\u202c עברית",
    "spaces": " \t a  \u00a0\u3000 ",
    "JSON": '{"type":"ProjectDeleted"}',
    "looks like no text": "null true NaN 1e999 -0",
    "SQL": "'; DROP TABLE events; -- \" ` $1 ? :name %s %(name)s {} $$",
    "path": "../../../etc/passwd",
    "absolute path": "//etc/./passwd/..",
    "path of Windows": "C:\\CON\\..\\aux.txt:stream?*<>|",
    "path with newlines": "a\nb/-rf ~/$HOME/`x`/%2e%2e\0.png",
    "long": "ł" * 70_000,
}


def text_fields() -> Iterator[tuple[Any, str]]:
    """Every field of every event and content that is a text, and nothing more special, with an owner of it."""
    for event in samples():
        owners = [event, event.content] if isinstance(event, MessageAppended) else [event]
        for owner in owners:
            for field in type(owner).model_fields:
                if field not in {"type", "error", "output"} and type(getattr(owner, field)) is str:
                    yield owner, field


def with_text(owner: Any, field: str, value: str) -> Any:
    """Returns an event that has it, built and validated in the usual way."""
    changed = type(owner)(**{**dict(owner), field: value})
    return changed if isinstance(changed, EVENT_CLASSES) else message(changed)


def test_any_text_comes_back_as_it_was_from_every_field(database: Database) -> None:
    events = [with_text(owner, field, value) for owner, field in text_fields() for value in TEXTS.values()]
    for value in TEXTS.values():
        events += [
            tool_call({value: value, "list": [value, {value: [value]}]}),
            tool_result(value),
            tool_result({value: None}),
            approval(value),
            ThreadStatusChanged(thread_id=ONE, status="error", error=value),
        ]

    assert_round_trip(database, events)


@pytest.mark.parametrize("value", ["\ud800", "a\udfff", "ab\ud83d", "\ude00\ud83d", f"{SECRET}\udcff"])
def test_a_lone_surrogate_is_refused_in_every_field(memory: Database, value: str) -> None:
    before = memory.events.append_all(samples())
    fields = [*text_fields(), (ThreadStatusChanged(thread_id=ONE, status="error", error="x"), "error")]
    assert len(fields) > 20

    for owner, field in fields:
        with pytest.raises((ValidationError, EventEncodeError)) as caught:
            memory.events.append_all([with_text(owner, field, value)])
        assert_secret_is_kept(caught.value)

    assert_unharmed(memory, before)


@pytest.mark.slow
def test_a_text_of_50_megabytes_comes_back_as_it_was(database: Database) -> None:
    value = 'łódź 🌊 "\\\n' * 3_200_000
    assert len(value.encode()) > 50_000_000
    before = database.events.append_all([renamed()])

    stored = database.events.append_all([message(TextContent(text=value)), renamed()])

    replayed = database.events.replay_all()
    assert [s.sequence for s in replayed] == [1, 2, 3]
    assert replayed[1].event.content.text == value  # type: ignore[union-attr]
    assert replayed == before + stored


def test_an_event_of_50_megabytes_that_is_wrong_is_not_in_the_message(memory: Database) -> None:
    assert_refused(memory, renamed(SECRET * 3_400_000 + "\ud800"))


# JSON


def test_json_comes_back_as_it_was_with_its_types(database: Database) -> None:
    numbers = [0, -1, 1, 1.0, True, False, None, 0.0, -0.0, 1e16, 1e22, 1.5e300, 5e-324, 0.1 + 0.2, 1 / 3]
    values: list[Any] = [
        *numbers,
        numbers,
        {"1": 1, "1.0": 1.0, "true": True, "": {}, " ": []},
        [[], {}, [[]], [{}], "", "null"],
        {"b": 1, "a": 2, "type": "ProjectDeleted", "schema_version": 9},
    ]

    assert_round_trip(database, in_every_json_field(values))


def test_integers_of_any_length_below_the_limit_come_back(database: Database) -> None:
    limit = 2**MAXIMUM_INTEGER_BITS - 1
    values = [2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 2**128, 10**100, 10**4_200, limit, -limit]

    assert_round_trip(database, in_every_json_field(values))


@pytest.mark.parametrize("holding", [in_arguments, tool_result, approval])
@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_what_json_cannot_carry_is_refused_when_the_event_is_built(holding: Callable[[Any], Any], value: Any) -> None:
    for wrong in (value, [value], {"x": [SECRET, value]}):
        with pytest.raises(ValidationError) as caught:
            holding(wrong)
        assert_secret_is_kept(caught.value)


def test_arguments_of_128_levels_come_back(database: Database) -> None:
    arguments = deep(MAXIMUM_JSON_DEPTH)
    assert isinstance(arguments, dict)

    assert_round_trip(
        database, [tool_call(arguments), tool_result(arguments), approval([deep(MAXIMUM_JSON_DEPTH - 1)])]
    )


@pytest.mark.parametrize("levels", [MAXIMUM_JSON_DEPTH + 2, 200, 1_000, 100_000])
def test_deeper_arguments_are_refused(memory: Database, levels: int) -> None:
    with pytest.raises(ValidationError, match="nested deeper than 128 levels") as caught:
        tool_call(deep(levels))
    assert_secret_is_kept(caught.value)

    event = tool_call({})
    event.content.arguments.update(deep(levels))  # type: ignore[union-attr]
    assert_refused(memory, event, reason="nested deeper than 128 levels")


def test_arguments_that_hold_themselves_are_refused() -> None:
    arguments: dict[str, Any] = {"secret": SECRET}
    arguments["again"] = arguments

    with pytest.raises(ValidationError, match="nested deeper than 128 levels") as caught:
        tool_call(arguments)
    assert_secret_is_kept(caught.value)


# Times


def test_a_naive_time_is_refused_when_the_event_is_built() -> None:
    with pytest.raises(ValidationError, match="timezone info"):
        ProjectRenamed(project_id=ONE, name=SECRET, occurred_at=NOON.replace(tzinfo=None))


def test_times_come_back_to_the_microsecond(database: Database) -> None:
    moments = [
        NOON,
        NOON.replace(microsecond=1),
        NOON.replace(microsecond=999_999),
        NOON.replace(microsecond=100_000),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        NOON.astimezone(timezone(timedelta(hours=5, minutes=45))),
        datetime(2025, 3, 30, 2, 30, tzinfo=timezone(timedelta(hours=1, seconds=7))),
    ]

    assert_round_trip(database, [ProjectRenamed(project_id=ONE, name="x", occurred_at=moment) for moment in moments])


# Many


@pytest.mark.slow
def test_a_batch_of_100_000_is_stored_as_one(database: Database) -> None:
    count = 100_000
    before = database.events.append_all([renamed()])

    stored = database.events.append_all([renamed(f"name {n}") for n in range(count)])

    assert [s.sequence for s in stored] == list(range(2, count + 2))
    assert database.events.replay_all() == before + stored


def test_nothing_is_stored_of_a_batch_of_100_000_whose_last_event_is_wrong(memory: Database) -> None:
    batch: list[Any] = [renamed()] * 100_000

    assert_refused(memory, *batch, None, index=100_000)


# Error messages


def test_a_row_that_cannot_be_decoded_is_not_quoted(database: Database) -> None:
    payload = renamed(SECRET).model_dump_json().replace("}", f',"path":"{SECRET}"}}')
    before = database.events.append_all([renamed()])
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            {"sequence": 2, "event_type": "ProjectRenamed", "payload": payload, "stored_at": "2025-03-14T12:00:00Z"},
        )

    with pytest.raises(EventDecodeError, match=r"event 2 \(ProjectRenamed\)") as caught:
        database.events.replay_all()

    assert_secret_is_kept(caught.value)
    assert list(database.events.stream(limit=1)) == before


def execute(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("url", ["file", "memory"], indirect=True)  # a full disk of a server would be everybody's
def test_an_append_that_the_disk_is_too_full_for_does_not_quote_the_events(database: Database) -> None:
    before = database.events.append_all([renamed()])
    database.events.close()
    with database.engine.connect() as connection:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # of this connection, the pool's only one

    for batch in ([renamed(SECRET * 1_000)], [renamed(SECRET)] * 2_000):
        with pytest.raises(StoreUnavailable, match="the disk is full: free some space") as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert_unharmed(database, before)


def test_an_append_that_a_rule_of_the_database_refuses_does_not_quote_the_events(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        rule = (
            "CREATE TRIGGER too_long BEFORE INSERT ON events WHEN length(NEW.payload) > 1000 "
            "BEGIN SELECT RAISE(ABORT, 'too long'); END"
        )
    else:
        rule = "ALTER TABLE events ADD CONSTRAINT too_long CHECK (length(payload) <= 1000)"
    before = database.events.append_all([renamed()])
    execute(database, rule)

    for batch in ([renamed(SECRET * 100)], [renamed(SECRET), renamed(SECRET * 100)]):
        with pytest.raises(StoreUnavailable) as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    assert_unharmed(database, before)


def test_an_append_to_a_table_that_is_gone_does_not_quote_the_events(database: Database) -> None:
    before = database.events.append_all([renamed()])
    execute(database, "ALTER TABLE events RENAME TO away")

    for batch in ([renamed(SECRET)], [renamed(SECRET)] * 500):
        with pytest.raises(StoreUnavailable) as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    execute(database, "ALTER TABLE away RENAME TO events")
    assert_unharmed(database, before)
