"""Difficult values (text, JSON, times): each is read back exactly, or is refused."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from helpers.event_strategies import EVENT_CLASSES
from helpers.hard_events import (
    NOON,
    NOT_JSON,
    ONE,
    approval,
    assert_refused,
    assert_unharmed,
    deep,
    message,
    renamed,
    samples,
    tool_call,
)
from helpers.secret import SECRET, assert_secret_is_kept
from pydantic import ValidationError

from peon.orchestration import (
    MessageAppended,
    ProjectRenamed,
    TextContent,
    ThreadStatusChanged,
    ToolResultContent,
)
from peon.payloads import MAXIMUM_INTEGER_BITS, MAXIMUM_JSON_DEPTH
from peon.persistence import Database, EventEncodeError


def tool_result(output: Any) -> MessageAppended:
    return message(ToolResultContent(tool_call_id="1", output=output, is_error=False))


def in_every_json_field(values: Iterable[Any]) -> list[Any]:
    return [holding(value) for value in values for holding in (in_arguments, tool_result, approval)]


def in_arguments(value: Any) -> MessageAppended:
    return tool_call({"value": value})


def assert_round_trip(database: Database, events: list[Any]) -> None:
    last = database.events.last_sequence()

    stored = database.events.append_all(events)

    assert [s.sequence for s in stored] == list(range(last + 1, last + 1 + len(events)))
    replayed = database.events.replay_from(last + 1)
    assert [s.event for s in replayed] == events
    assert replayed == stored
    # repr distinguishes values that == does not: 1, 1.0 and True; 0.0 and -0.0.
    assert [repr(s) for s in replayed] == [repr(s) for s in stored]


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
    """Yields every plain text field of every event and content, together with its owner."""
    for event in samples():
        owners = [event, event.content] if isinstance(event, MessageAppended) else [event]
        for owner in owners:
            for field in type(owner).model_fields:
                if field not in {"type", "error", "output"} and type(getattr(owner, field)) is str:
                    yield owner, field


def with_text(owner: Any, field: str, value: str) -> Any:
    """Returns an event with the text in that field, built and validated in the usual way."""
    changed = type(owner)(**{**dict(owner), field: value})
    return changed if isinstance(changed, EVENT_CLASSES) else message(changed)


def test_every_field_returns_any_text_unchanged(database: Database) -> None:
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
def test_a_lone_surrogate_is_refused_in_every_field_but_that_of_an_error(memory: Database, value: str) -> None:
    before = memory.events.append_all(samples())
    fields = list(text_fields())
    assert len(fields) >= 20

    for owner, field in fields:
        with pytest.raises((ValidationError, EventEncodeError)) as caught:
            memory.events.append_all([with_text(owner, field, value)])
        assert_secret_is_kept(caught.value)

    assert_unharmed(memory, before)


@pytest.mark.slow
def test_a_text_of_50_megabytes_is_read_back_unchanged(database: Database) -> None:
    value = 'łódź 🌊 "\\\n' * 3_200_000
    assert len(value.encode()) > 50_000_000
    before = database.events.append_all([renamed()])

    stored = database.events.append_all([message(TextContent(text=value)), renamed()])

    replayed = database.events.replay_all()
    assert [s.sequence for s in replayed] == [1, 2, 3]
    assert replayed[1].event.content.text == value  # type: ignore[union-attr]
    assert replayed == before + stored


def test_the_error_does_not_quote_a_wrong_event_of_50_megabytes(memory: Database) -> None:
    assert_refused(memory, renamed(SECRET * 3_400_000 + "\ud800"))


def test_json_values_are_read_back_with_their_types(database: Database) -> None:
    numbers = [0, -1, 1, 1.0, True, False, None, 0.0, -0.0, 1e16, 1e22, 1.5e300, 5e-324, 0.1 + 0.2, 1 / 3]
    values: list[Any] = [
        *numbers,
        numbers,
        {"1": 1, "1.0": 1.0, "true": True, "": {}, " ": []},
        [[], {}, [[]], [{}], "", "null"],
        {"b": 1, "a": 2, "type": "ProjectDeleted", "schema_version": 9},
    ]

    assert_round_trip(database, in_every_json_field(values))


def test_integers_of_any_length_below_the_limit_are_read_back(database: Database) -> None:
    limit = 2**MAXIMUM_INTEGER_BITS - 1
    values = [2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 2**128, 10**100, 10**4_200, limit, -limit]

    assert_round_trip(database, in_every_json_field(values))


@pytest.mark.parametrize("holding", [in_arguments, tool_result, approval])
@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_a_value_without_a_json_form_is_refused_when_the_event_is_built(
    holding: Callable[[Any], Any], value: Any
) -> None:
    for wrong in (value, [value], {"x": [SECRET, value]}):
        with pytest.raises(ValidationError) as caught:
            holding(wrong)
        assert_secret_is_kept(caught.value)


def test_arguments_of_128_levels_are_read_back(database: Database) -> None:
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


def test_arguments_that_contain_themselves_are_refused() -> None:
    arguments: dict[str, Any] = {"secret": SECRET}
    arguments["again"] = arguments

    with pytest.raises(ValidationError, match="nested deeper than 128 levels") as caught:
        tool_call(arguments)
    assert_secret_is_kept(caught.value)


def test_a_naive_time_is_refused_when_the_event_is_built() -> None:
    with pytest.raises(ValidationError, match="timezone info"):
        ProjectRenamed(project_id=ONE, name=SECRET, occurred_at=NOON.replace(tzinfo=None))


def test_times_are_read_back_to_the_microsecond(database: Database) -> None:
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
