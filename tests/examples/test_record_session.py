"""Runs the example like a user, and checks the events of a session."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.command_processes import run_script
from helpers.slow_proofs import rest_is_slow

from peon.orchestration import MessageAppended, MessageChunkReceived, TextContent, ThinkingContent
from peon.persistence import Database

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "record_session.py"
TRANSCRIPTS = sorted((ROOT.parent / "shared" / "transcripts").glob("*.jsonl"))

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the examples are only in a checkout")


def environment(data_dir: Path) -> dict[str, str]:
    return os.environ | {"PEON_GENERAL__DATA_DIR": str(data_dir), "COLUMNS": "100"}


def run(data_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments, environment=environment(data_dir))


def test_without_a_file_it_records_its_sample_session(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT]
    first = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    second = run(tmp_path)

    assert (first.returncode, first.stderr) == (0, "")
    assert "Stored 61 events of session.jsonl" in first.stdout
    assert "The table prints high water an hour late" not in first.stdout  # it shows only the last messages
    assert "Done: one line under Unreleased" in first.stdout
    assert second.returncode == 0
    with Database.open(url=f"sqlite:///{tmp_path}/peon.db", migrate=False) as database:
        counts = Counter(stored.event.type for stored in database.events.stream())
    assert counts["ProjectCreated"] == 1, "the second run knows the project"
    assert counts["ThreadCreated"] == 2


@pytest.mark.skipif(not TRANSCRIPTS, reason="no recorded sessions on this machine")
@pytest.mark.parametrize("session", TRANSCRIPTS, ids=lambda path: path.name[:8])
def test_a_real_session_is_stored_word_by_word(tmp_path: Path, session: Path) -> None:
    result = run(tmp_path, session)

    assert (result.returncode, result.stderr) == (0, "")
    with Database.open(url=f"sqlite:///{tmp_path}/peon.db", migrate=False) as database:
        log = database.events.replay_all()
    spoken: dict[object, str] = {}
    others: list[object] = []
    for stored in log:
        match stored.event:
            case MessageAppended(content=TextContent(text=text), role="assistant"):
                spoken[stored.event.message_id] = text
            case MessageChunkReceived():
                spoken[stored.event.message_id] += stored.event.delta
            case MessageAppended(content=ThinkingContent(text=text)):
                others.append(text)
            case MessageAppended(content=content) if content.type == "tool_call":
                others.append(content.arguments)
            case MessageAppended(content=content) if content.type == "tool_result":
                others.append(content.output)
    blocks = [
        (line["type"], block)
        for line in map(json.loads, session.read_text(encoding="utf-8").splitlines())
        if line["type"] in ("user", "assistant") and not line.get("isMeta")
        for block in line["message"]["content"]
        if isinstance(block, dict)
    ]
    assert list(spoken.values()) == [b["text"] for who, b in blocks if who == "assistant" and b["type"] == "text"]
    keys = {"thinking": "thinking", "tool_use": "input", "tool_result": "content"}
    assert others == [block[keys[block["type"]]] for _, block in blocks if block["type"] in keys]


@pytest.mark.parametrize(
    ("content", "expected"),
    rest_is_slow(
        [
            ("", "none of its 0 lines is a message"),
            ('{"type": "summary"}\n', "none of its 1 lines is a message"),
            ('{"type": "summary"}\n{"type": ', "line 2 is not JSON"),
            ("[]\n", "line 1 is not a JSON object"),
            ('{"type": "user", "message": {"content": "hi"}}\n', "line 1 is not one of a Claude Code session"),
        ],
        first=2,
    ),
)
def test_the_error_for_a_file_that_is_not_a_session_names_the_line(tmp_path: Path, content: str, expected: str) -> None:
    session = tmp_path / "no session.jsonl"
    session.write_text(content)

    result = run(tmp_path, session)

    assert result.returncode == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    result = run(tmp_path, tmp_path / "missing.jsonl")

    assert result.returncode == 1
    assert "missing.jsonl" in result.stderr
    assert "Traceback" not in result.stderr
