"""The values of the domain: what the events are about, as the read model returns it."""

from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from peon.payloads import JsonObject, JsonValue, UtcDatetime


class Provider(StrEnum):
    """Whose coding agent runs a thread."""

    CLAUDE = "claude"
    CODEX = "codex"


class RuntimeMode(StrEnum):
    """Whether the agent acts freely or asks before it acts."""

    FULL_ACCESS = "full_access"
    SUPERVISED = "supervised"


class ThreadStatus(StrEnum):
    IDLE = "idle"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    COMPLETED = "completed"
    ERROR = "error"


class TurnStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class ApprovalStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


class MessageRole(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    SYSTEM = "system"


class Value(BaseModel):
    """Base of everything in the domain: compared by value, never changed, no field that is not known."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # A value made by `model_construct` or changed behind pydantic's back must not slip into an event.
        revalidate_instances="always",
        # What users and agents write stays out of error messages and so out of logs.
        hide_input_in_errors=True,
    )


_intact_shapes: set[tuple[object, ...]] = set()


def require_intact(value: Value) -> None:
    """Raises `ValueError` for a value that was changed behind pydantic's back (pydantic's error is one).

    Whether a field's value is allowed depends on its class alone, and on the tag: so each combination is
    validated once and then known, which takes a quarter of the time of validating each value. What depends on
    more than the class checks itself when it is written: JSON, times, text.
    """
    fields = value.__dict__
    shape = (type(value), value.__pydantic_extra__, fields.get("type"), *fields, *map(type, fields.values()))
    if shape not in _intact_shapes:
        if type(value).__pydantic_validator__.validate_python(fields, strict=True) != value:
            raise ValueError("a field is missing, is not known, or is of a class that would not come back")
        _intact_shapes.add(shape)


class TextContent(Value):
    type: Literal["text"] = "text"
    text: str


class ToolCallContent(Value):
    """A tool that the agent asked to be run; `tool_call_id` is the provider's own and pairs it with the result."""

    type: Literal["tool_call"] = "tool_call"
    tool_call_id: str
    name: str
    arguments: JsonObject


class ToolResultContent(Value):
    type: Literal["tool_result"] = "tool_result"
    tool_call_id: str
    output: JsonValue
    is_error: bool


class ThinkingContent(Value):
    type: Literal["thinking"] = "thinking"
    text: str


MessageContent = Annotated[
    TextContent | ToolCallContent | ToolResultContent | ThinkingContent, Field(discriminator="type")
]


class Project(Value):
    id: UUID
    name: str
    path: str
    created_at: UtcDatetime


class Thread(Value):
    """A conversation with one agent; `error` is the text that belongs to the status `error`."""

    id: UUID
    project_id: UUID
    title: str | None
    provider: Provider
    model: str
    runtime_mode: RuntimeMode
    status: ThreadStatus
    error: str | None
    created_at: UtcDatetime
    updated_at: UtcDatetime


class Turn(Value):
    """One request to the agent and all it did in answer; `error` is the text that belongs to the status `failed`."""

    id: UUID
    thread_id: UUID
    status: TurnStatus
    error: str | None
    started_at: UtcDatetime
    completed_at: UtcDatetime | None


class Message(Value):
    id: UUID
    turn_id: UUID
    role: MessageRole
    content: MessageContent
    created_at: UtcDatetime


class Checkpoint(Value):
    """A state of the project's files, kept as a git reference; `restored_at` is when they last went back to it."""

    id: UUID
    thread_id: UUID
    turn_id: UUID
    git_ref: str
    created_at: UtcDatetime
    restored_at: UtcDatetime | None = None


class Approval(Value):
    """An action that a supervised agent asked leave for; `reason` is what the user said when it was rejected."""

    id: UUID
    thread_id: UUID
    turn_id: UUID
    action: str
    detail: JsonValue
    status: ApprovalStatus
    reason: str | None
    requested_at: UtcDatetime
    decided_at: UtcDatetime | None


class Commit(Value):
    """Changes that were committed to git in a thread.

    `hash` is the git object name, and `sequence` the place of the event in the log, as a commit may be told twice.
    """

    sequence: int
    thread_id: UUID
    hash: str
    message: str
    committed_at: UtcDatetime


class Branch(Value):
    """A git branch that a thread created, pushed, or both; `remote` is where it was last pushed to."""

    thread_id: UUID
    name: str
    created_at: UtcDatetime | None
    remote: str | None
    pushed_at: UtcDatetime | None


class Snapshot(Value):
    """The whole state at one moment, for a start-up; each list oldest first.

    `sequence` is the place in the log of the last event that is in it: what comes after that is news.
    """

    sequence: int
    projects: tuple[Project, ...]
    threads: tuple[Thread, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    checkpoints: tuple[Checkpoint, ...]
    pending_approvals: tuple[Approval, ...]
    commits: tuple[Commit, ...]
    branches: tuple[Branch, ...]
    selected_thread_id: UUID | None
