"""The values of the domain, as the read model returns them."""

from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from peon.payloads import JsonObject, JsonValue, UtcDatetime


class Provider(StrEnum):
    """The provider of the coding agent of a thread."""

    CLAUDE = "claude"
    CODEX = "codex"


class RuntimeMode(StrEnum):
    """Whether the agent acts freely, or asks before it acts."""

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
    """Base class of the domain's values and events: compared by value, immutable, without unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # A value that was created by `model_construct`, or changed without validation, must not get into an event.
        revalidate_instances="always",
        # Keeps what users and agents write out of error messages, and so out of logs.
        hide_input_in_errors=True,
    )


_intact_shapes: set[tuple[object, ...]] = set()


def require_intact(value: Value) -> None:
    """Raises `ValueError`, of which pydantic's error is a subclass, for a value that was changed without validation.

    Whether a field's value is allowed depends only on its class, on the tag and on the version. So each combination
    is validated once and then remembered, which takes a quarter of the time of validating each value. Field types for
    which more than the class matters (JSON, times, text) check themselves when they are written.
    """
    fields = value.__dict__
    fixed = fields.get("type"), fields.get("schema_version")
    shape = (type(value), value.__pydantic_extra__, fixed, *fields, *map(type, fields.values()))
    if shape not in _intact_shapes:
        if type(value).__pydantic_validator__.validate_python(fields, strict=True) != value:
            raise ValueError("a field is missing, is unknown, or is of a class that would not be read back equal")
        _intact_shapes.add(shape)


class TextContent(Value):
    type: Literal["text"] = "text"
    text: str


class ToolCallContent(Value):
    """A call of a tool by the agent; `tool_call_id` is assigned by the provider, and identifies the result."""

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
    """A conversation with one agent; `error` has the text of the status `error`."""

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


class ThreadSummary(Thread):
    """A thread as a list of threads shows it.

    `first_words` is the beginning of its first message with text, in one line; messages of the system and streamed text
    do not count. `pending_approvals` is the number of actions that wait for a decision of the user. `last_sequence` is
    the place in the log of its last event, other than streamed text.
    """

    first_words: str | None
    turn_count: int
    message_count: int
    pending_approvals: int
    last_sequence: int

    @property
    def label(self) -> str | None:
        """The title, or the first words if there is no title."""
        return self.title or self.first_words


class Turn(Value):
    """One request to the agent, and its answer; `error` has the text of the status `failed`."""

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


class ToolCallMessage(Message):
    """A message with the call of a tool."""

    content: ToolCallContent


class Checkpoint(Value):
    """A state of the project's files, saved as a git reference; `restored_at` is when it was last restored."""

    id: UUID
    thread_id: UUID
    turn_id: UUID
    git_ref: str
    created_at: UtcDatetime
    restored_at: UtcDatetime | None = None


class Approval(Value):
    """An action for which a supervised agent asked permission; `reason` is why the user rejected it."""

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
    """A git commit that was made in a thread.

    `hash` is the git object name. `sequence` is the place of the event in the log, because a commit may be reported
    more than once.
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
    """The whole state at one moment, for a start-up. Each list is oldest first.

    `sequence` is the place in the log of the last event that it contains. A subscription after it yields the rest.
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
