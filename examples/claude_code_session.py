"""Converts the lines of a Claude Code session file (JSONL) into events of the domain."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import PurePath
from typing import Any
from uuid import UUID, uuid4

from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    MessageContent,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadSelected,
    ThreadStatus,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnCompleted,
    TurnInterrupted,
    TurnStarted,
)

CHUNK_CHARACTERS = 40
"""About as much as an agent streams at once."""

INTERRUPTED = "[Request interrupted by user"


class SessionError(ValueError):
    """The file is not a session file; the message names the line."""


def parse(number: int, line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise SessionError(f"line {number} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise SessionError(f"line {number} is not a JSON object")
    return parsed


class SessionReader:
    """Converts one session, line by line, into a new thread of its project.

    Args:
        projects: Identifiers of the projects that are known already, by path. A new project is added.
        chunk_characters: How much text arrives at a time while the agent writes.
    """

    def __init__(self, projects: dict[str, UUID], chunk_characters: int = CHUNK_CHARACTERS) -> None:
        self._projects = projects
        self._chunk_characters = chunk_characters
        self._thread_id = uuid4()
        self._turn_id: UUID | None = None
        self._started = False
        self._now: datetime | None = None
        self._model = "unknown"

    def batches(self, lines: Iterable[str]) -> Iterator[list[OrchestrationEvent]]:
        """Yields for each line the events of one transaction, which is an empty list if the line has none.

        Raises:
            SessionError: A line is not what Claude Code writes.
        """
        parsed = [parse(number, line) for number, line in enumerate(lines, 1)]
        models = (line["message"].get("model") for line in parsed if line.get("type") == "assistant")
        self._model = next(filter(None, models), "unknown")
        for number, line in enumerate(parsed, 1):
            try:
                yield list(self._line(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SessionError(f"line {number} is not one of a Claude Code session: {error!r}") from error
        if not self._started:
            raise SessionError(f"none of its {len(parsed)} lines is a message of a user or an agent")
        yield list(self._end_turn(TurnCompleted))

    def _line(self, line: dict[str, Any]) -> Iterator[OrchestrationEvent]:
        if line.get("type") not in ("user", "assistant") or line.get("isMeta"):
            return
        self._now = datetime.fromisoformat(line["timestamp"])
        message = line["message"]
        if not self._started:
            yield from self._start(line)
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            if line["type"] == "user":
                yield from self._from_user(block)
            else:
                yield from self._from_agent(block)

    def _start(self, line: dict[str, Any]) -> Iterator[OrchestrationEvent]:
        self._started = True
        path = line["cwd"]
        if path not in self._projects:
            self._projects[path] = uuid4()
            yield ProjectCreated(
                occurred_at=self._now, project_id=self._projects[path], name=PurePath(path).name, path=path
            )
        free = line.get("permissionMode") == "bypassPermissions"
        yield ThreadCreated(
            occurred_at=self._now,
            thread_id=self._thread_id,
            project_id=self._projects[path],
            provider=Provider.CLAUDE,
            model=self._model,
            runtime_mode=RuntimeMode.FULL_ACCESS if free else RuntimeMode.SUPERVISED,
        )
        yield ThreadSelected(occurred_at=self._now, thread_id=self._thread_id)

    def _from_user(self, block: dict[str, Any]) -> Iterator[OrchestrationEvent]:
        if block["type"] == "tool_result":
            result = ToolResultContent(
                tool_call_id=block["tool_use_id"],
                output=block.get("content"),
                is_error=bool(block.get("is_error", False)),
            )
            yield from self._message(MessageRole.TOOL, result)
        elif block["type"] == "text" and block["text"].startswith(INTERRUPTED):
            yield from self._end_turn(TurnInterrupted)
        elif block["type"] == "text":
            yield from self._end_turn(TurnCompleted)
            yield from self._message(MessageRole.USER, TextContent(text=block["text"]))

    def _from_agent(self, block: dict[str, Any]) -> Iterator[OrchestrationEvent]:
        if block["type"] == "text":
            yield from self._streamed(block["text"])
        elif block["type"] == "thinking":
            yield from self._message(MessageRole.ASSISTANT, ThinkingContent(text=block["thinking"]))
        elif block["type"] == "tool_use":
            call = ToolCallContent(tool_call_id=block["id"], name=block["name"], arguments=block["input"])
            yield from self._message(MessageRole.ASSISTANT, call)

    def _streamed(self, text: str) -> Iterator[OrchestrationEvent]:
        """Returns an empty message and its chunks, as the agent streamed them."""
        yield from self._begin_turn()
        message = self._appended(MessageRole.ASSISTANT, TextContent(text=""))
        yield message
        for start in range(0, len(text), self._chunk_characters):
            yield MessageChunkReceived(
                occurred_at=self._now,
                message_id=message.message_id,
                turn_id=message.turn_id,
                thread_id=message.thread_id,
                delta=text[start : start + self._chunk_characters],
            )

    def _message(self, role: MessageRole, content: MessageContent) -> Iterator[OrchestrationEvent]:
        yield from self._begin_turn()
        yield self._appended(role, content)

    def _begin_turn(self) -> Iterator[OrchestrationEvent]:
        if self._turn_id is None:
            self._turn_id = uuid4()
            yield TurnStarted(occurred_at=self._now, turn_id=self._turn_id, thread_id=self._thread_id)
            yield ThreadStatusChanged(occurred_at=self._now, thread_id=self._thread_id, status=ThreadStatus.RUNNING)

    def _appended(self, role: MessageRole, content: MessageContent) -> MessageAppended:
        if self._turn_id is None:
            raise ValueError("a message belongs to a turn")
        return MessageAppended(
            occurred_at=self._now,
            message_id=uuid4(),
            turn_id=self._turn_id,
            thread_id=self._thread_id,
            role=role,
            content=content,
        )

    def _end_turn(self, ending: type[TurnCompleted] | type[TurnInterrupted]) -> Iterator[OrchestrationEvent]:
        if self._turn_id is not None:
            yield ending(occurred_at=self._now, turn_id=self._turn_id, thread_id=self._thread_id)
            yield ThreadStatusChanged(occurred_at=self._now, thread_id=self._thread_id, status=ThreadStatus.IDLE)
            self._turn_id = None
