"""`peon threads` and `peon show`."""

from typing import Any

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.orchestration_scene import (
    CHECKPOINT,
    DECIDED,
    MESSAGE,
    ON_TURN,
    OTHER_THREAD,
    PROJECT,
    SCENE,
    THREAD,
    TURN,
    UNKNOWN,
    add_row,
    append_alone,
    chunk,
    message,
)
from helpers.peon_command import Peon
from sqlalchemy import URL

from peon import Database
from peon.orchestration import (
    ActionApproved,
    BranchPushed,
    CheckpointRestored,
    MessageAppended,
    MessageRole,
    TextContent,
    ThreadDeleted,
    ThreadStatus,
    ThreadStatusChanged,
    ToolResultContent,
    TurnCompleted,
    TurnFailed,
)


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(SCENE)
    return "--url", address(migrated_lasting_url)


def shown(peon: Peon, at: tuple[str, str], thread: object = THREAD) -> dict[str, Any]:
    document: dict[str, Any] = peon("show", thread, "--json", *at).document
    return document


def episodes(peon: Peon, at: tuple[str, str], kind: str) -> list[tuple[str, list[int], str]]:
    return [
        (each["title"], each["sequences"], each["text"]) for each in shown(peon, at)["episodes"] if each["kind"] == kind
    ]


def append(at: tuple[str, str], *events: Any) -> None:
    with Database.open(url=at[1]) as database:
        database.events.append_all(events)


def test_threads_are_listed_by_activity(peon: Peon, at: tuple[str, str]) -> None:
    append(at, ThreadStatusChanged(thread_id=OTHER_THREAD, status=ThreadStatus.ERROR, error="out of memory"))
    document = peon("threads", "--json", *at).document
    assert document["total"] == 2
    assert [each["id"] for each in document["threads"]] == [str(OTHER_THREAD), str(THREAD)]
    assert {key: document["threads"][1][key] for key in ("project", "turns", "messages", "status")} == {
        "project": "tide-table",
        "turns": 2,
        "messages": 3,
        "status": "idle",
    }
    assert document["threads"][0]["error"] == "out of memory"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--project", str(PROJECT)], [THREAD]),
        (["--status", "error"], []),
        (["--status", "idle", "-n", "9"], [OTHER_THREAD, THREAD]),
    ],
)
def test_threads_are_filtered(peon: Peon, at: tuple[str, str], options: list[str], expected: list[object]) -> None:
    found = peon("threads", "--json", *options, *at).document["threads"]
    assert sorted(each["id"] for each in found) == sorted(map(str, expected))


def test_a_list_that_was_cut_says_so(peon: Peon, at: tuple[str, str]) -> None:
    assert "1 more" in peon("threads", "-n", "1", *at).out
    assert peon("threads", "-n", "1", "--json", *at).document["total"] == 2


def test_each_episode_of_a_thread_has_its_sequences(peon: Peon, at: tuple[str, str]) -> None:
    document = shown(peon, at)
    assert (document["created"], document["provider"], document["model"]) == (True, "claude", "a-model")
    assert document["read_model"]["turns"] == 2
    assert episodes(peon, at, "turn") == [("turn completed", [6, 7], ""), ("turn running", [8], "")]
    assert episodes(peon, at, "thinking") == [("assistant thinks", [10, 13], "ebb and flow")]
    assert episodes(peon, at, "tool") == [
        ("shell without a result", [11], '{"text":"ls"}'),
        ("result of an unknown tool call: ok", [12], '{"text":"a"}'),
    ]
    assert episodes(peon, at, "approval") == [
        ("shell? undecided", [14], '{"command":"ls"}'),
        ("shell? rejected: No.", [15, 16], "null"),
    ]
    assert episodes(peon, at, "checkpoint") == [("checkpoint refs/peon/1", [17], "")]
    assert episodes(peon, at, "git") == [("commit c0ffee", [18], "Tides"), ("branch tides created", [19], "")]
    wrong = [each["sequences"] for each in document["episodes"] if each["is_wrong"]]
    assert wrong == [[12]]


def test_all_other_events_of_a_thread_are_shown(peon: Peon, at: tuple[str, str]) -> None:
    text = MessageAppended(message_id=UNKNOWN, role=MessageRole.USER, content=TextContent(text="Hi"), **ON_TURN)
    append(
        at,
        text,
        ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.ERROR, error="out of memory"),
        CheckpointRestored(checkpoint_id=CHECKPOINT, thread_id=THREAD),
        BranchPushed(thread_id=THREAD, name="tides", remote="origin"),
        TurnFailed(error="cut off", **ON_TURN),
        ThreadDeleted(thread_id=THREAD),
    )
    document = shown(peon, at)
    assert document["read_model"] is None
    told = [(each["title"], each["sequences"], each["text"], each["is_wrong"]) for each in document["episodes"]]
    for expected in (
        ("user", [20], "Hi", False),
        ("status error", [21], "out of memory", True),
        (f"checkpoint {CHECKPOINT} restored", [22], "", False),
        ("branch tides pushed to origin", [23], "", False),
        ("turn failed", [8, 24], "cut off", True),
        ("thread deleted", [25], "", False),
    ):
        assert expected in told


def test_what_contradicts_the_thread_is_marked(peon: Peon, at: tuple[str, str]) -> None:
    with Database.open(url=at[1]) as database:
        append_alone(
            database,
            chunk(UNKNOWN, "lost"),
            ActionApproved(approval_id=UNKNOWN, **ON_TURN),
            TurnCompleted(turn_id=UNKNOWN, thread_id=THREAD),
            message(UNKNOWN, ToolResultContent(tool_call_id="9", output="text", is_error=True)),
        )
        add_row(database, "TurnStarted", f'{{"type":"TurnStarted","thread_id":"{THREAD}"}}')
        add_row(database, "MyOwnEvent", f'{{"type":"MyOwnEvent","thread_id":"{THREAD}"}}')
    with Database.open(url=at[1]):
        pass  # catches up, and records the problems
    wrong = [each for each in shown(peon, at)["episodes"] if each["is_wrong"]]
    assert [(each["title"].partition(":")[0], each["sequences"]) for each in wrong] == [
        ("result of an unknown tool call", [12]),
        ("text of an unknown message", [20]),
        ("approved, which nobody has asked for", [21]),
        ("turn completed, which has not started", [22]),
        ("result of an unknown tool call", [23]),
        ("TurnStarted cannot be decoded", [24]),
        ("MyOwnEvent cannot be decoded", [25]),
    ]
    assert "there is no message" in wrong[1]["problem"]
    assert "not applied to the read model: there is no message" in peon("show", THREAD, *at).out


def test_a_failed_tool_is_marked(peon: Peon, at: tuple[str, str]) -> None:
    append(at, message(UNKNOWN, ToolResultContent(tool_call_id="1", output="no such file", is_error=True)))
    tool = next(each for each in shown(peon, at)["episodes"] if each["kind"] == "tool")
    assert tool["title"] == "shell failed"
    assert tool["is_wrong"]
    assert tool["text"].endswith("no such file")


def test_people_read_a_thread(peon: Peon, at: tuple[str, str]) -> None:
    append(at, chunk(MESSAGE, "\x1b[2J" + "x" * 1000), *(chunk(MESSAGE, "y") for _ in range(3)))
    done = peon("show", THREAD, *at)
    assert done.code == 0
    for part in (
        "ebb and",
        "shell without a result",
        "10, 13, 20-23",
        "turn running",
        "The read model says: idle",
        "…",
    ):
        assert part in done.out
    assert "\x1b" not in done.out
    assert "xyyy" not in done.out
    assert peon("show", THREAD, "--full", *at).out.count("x") > 1000


def test_a_thread_is_found_by_the_beginning_of_its_identifier(peon: Peon, migrated_sqlite_url: URL) -> None:
    at = ("--url", address(migrated_sqlite_url))
    append(at, *SCENE)
    assert shown(peon, at, str(THREAD)[:-1] + str(THREAD)[-1])["id"] == str(THREAD)
    assert peon("show", "0000", *at).code == 1  # several
    assert "several threads" in peon("show", "0000", *at).err
    assert "no thread begins" in peon("show", "f", *at).err
    assert "no thread begins" in peon("show", "%", *at).err
    assert shown(peon, at, str(TURN).replace(str(TURN), str(THREAD)).upper())["id"] == str(THREAD)


def test_an_unknown_thread_ends_with_1(peon: Peon, at: tuple[str, str]) -> None:
    done = peon("show", DECIDED, *at)
    assert done.code == 1
    assert "no event tells of thread" in done.err


@pytest.mark.parametrize("revision", ["001_initial", "004_coordination"])
def test_old_revisions_are_read(peon: Peon, sqlite_url: URL, revision: str) -> None:
    path = thaw(revision, file_of(sqlite_url))
    before = path.read_bytes()
    at = ("--url", address(sqlite_url))
    threads = peon("threads", "--json", *at).document["threads"]
    assert threads
    for each in threads:
        assert peon("show", each["id"], *at).code in (0, 1)  # rows of a frozen database have no events
    assert path.read_bytes() == before
