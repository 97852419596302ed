"""Errors for payloads that cannot be decoded name the event and the reason, and show no payload."""

import pytest
from helpers.secret import SECRET
from helpers.tide_events import ONE, decode_error

from peon.persistence.orchestration.codec import orchestration_codec

RENAMED = f'{{"type":"ProjectRenamed","occurred_at":"2025-03-14T09:26:53Z","project_id":"{ONE}","name":"{SECRET}"}}'

APPROVAL = (
    '{"type":"ApprovalRequested","occurred_at":"2025-03-14T09:26:53Z",'
    f'"approval_id":"{ONE}","turn_id":"{ONE}","thread_id":"{ONE}","action":"{SECRET}","detail":DETAIL}}'
)

STATUS = (
    f'{{"type":"ThreadStatusChanged","occurred_at":"2025-03-14T09:26:53Z","thread_id":"{ONE}","status":"idle",'
    f'"error":"{SECRET}"}}'
)

MESSAGE = (
    '{"type":"MessageAppended","occurred_at":"2025-03-14T09:26:53Z",'
    f'"message_id":"{ONE}","turn_id":"{ONE}","thread_id":"{ONE}","role":"user","content":CONTENT}}'
)

UNDECODABLE = {
    "unknown type": ("ProjectPainted", RENAMED, "no event of this type is known; a newer version may have written it"),
    "type in another case": ("projectrenamed", RENAMED, "no event of this type is known"),
    "no type": ("", RENAMED, "no event of this type is known"),
    "payload of another type": ("ProjectCreated", RENAMED, "type: Input should be 'ProjectCreated'"),
    "payload of another type that has the same fields": (
        "TurnCompleted",
        f'{{"type":"TurnInterrupted","occurred_at":"2025-03-14T09:26:53Z","turn_id":"{ONE}","thread_id":"{ONE}"}}',
        "type: Input should be 'TurnCompleted'",
    ),
    "nothing": ("ProjectRenamed", "", "Invalid JSON"),
    "not JSON": ("ProjectRenamed", SECRET, "Invalid JSON"),
    "cut off": ("ProjectRenamed", RENAMED[:-3], "Invalid JSON"),
    "two values": ("ProjectRenamed", RENAMED + RENAMED, "Invalid JSON"),
    "null": ("ProjectRenamed", "null", "should be an object"),
    "text": ("ProjectRenamed", f'"{SECRET}"', "should be an object"),
    "list": ("ProjectRenamed", f'["{SECRET}"]', "should be an object"),
    "field missing": ("ProjectRenamed", RENAMED.replace(f',"name":"{SECRET}"', ""), "name: Field required"),
    "field of a wrong type": ("ProjectRenamed", RENAMED.replace('"name":', '"name":1,"path":'), "name: Input should"),
    "field that is unknown": (
        "ProjectRenamed",
        RENAMED.replace("}", ',"x":1}'),
        "(unknown): Extra inputs are not permitted",
    ),
    "not a UUID": ("ProjectRenamed", RENAMED.replace(str(ONE), SECRET), "project_id: Input should be a valid UUID"),
    "naive time": ("ProjectRenamed", RENAMED.replace("53Z", "53"), "occurred_at: Input should have timezone info"),
    "not a time": ("ProjectRenamed", RENAMED.replace("2025", SECRET), "occurred_at: Input should be a valid datetime"),
    "time out of range in UTC": (
        "ProjectRenamed",
        RENAMED.replace("2025-03-14T09:26:53Z", "0001-01-01T00:00:00+01:00"),
        "out of range in UTC",
    ),
    "rule of two fields broken": ("ThreadStatusChanged", STATUS, "'error' is given if and only if"),
    "unknown role": (
        "MessageAppended",
        MESSAGE.replace('"user"', f'"{SECRET}"').replace("CONTENT", '{"type":"text","text":""}'),
        "role: Input should be 'user'",
    ),
    "content of no kind": ("MessageAppended", MESSAGE.replace("CONTENT", '{"text":"x"}'), "content: Unable to extract"),
    "content with a wrong field": (
        "MessageAppended",
        MESSAGE.replace("CONTENT", f'{{"type":"text","text":["{SECRET}"]}}'),
        "content.text.text: Input should be a valid string",
    ),
    "nested too deeply": ("ApprovalRequested", APPROVAL.replace("DETAIL", "[" * 1_000 + "]" * 1_000), "recursion"),
    "nested without an end": ("ApprovalRequested", APPROVAL.replace("DETAIL", "[" * 1_000_000), "recursion"),
    "integer too large": ("ApprovalRequested", APPROVAL.replace("DETAIL", "1" * 5_000), "number out of range"),
}


@pytest.mark.parametrize(("event_type", "payload", "reason"), UNDECODABLE.values(), ids=UNDECODABLE)
def test_a_decode_error_does_not_show_the_payload(event_type: str, payload: str, reason: str) -> None:
    error = decode_error(orchestration_codec, event_type, payload)

    assert reason in error.reason
    assert len(str(error)) < 500


def test_the_error_for_an_unknown_content_type_does_not_show_the_payload() -> None:
    payload = MESSAGE.replace("CONTENT", f'{{"type":"{SECRET}","text":"x"}}')

    assert decode_error(orchestration_codec, "MessageAppended", payload).reason.startswith("content: ")
