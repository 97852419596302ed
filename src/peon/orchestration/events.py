"""The events of the domain.

A released class keeps its name and its fields, because it reads logs that were written years ago. A changed event
gets a field `schema_version` and an upcaster. See `peon.Upcaster`.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

from peon.orchestration.model import (
    MessageContent,
    MessageRole,
    Provider,
    RuntimeMode,
    ThreadStatus,
    Value,
    require_intact,
)
from peon.payloads import JsonValue, MadeEncodable, RuleError, UtcDatetime


def _now() -> datetime:
    return datetime.now(UTC)


class Event(Value):
    """Base class of all events. `type` is the name of the class, in the payload and in the `event_type` column."""

    type: Any  # `str` would be wider than the Literal of an event, which pyright refuses in a subclass
    occurred_at: UtcDatetime = Field(default_factory=_now)


class ProjectCreated(Event):
    type: Literal["ProjectCreated"] = "ProjectCreated"
    project_id: UUID
    name: str
    path: str


class ProjectRenamed(Event):
    type: Literal["ProjectRenamed"] = "ProjectRenamed"
    project_id: UUID
    name: str


class ProjectDeleted(Event):
    """The project was deleted, with its threads, turns, messages and checkpoints."""

    type: Literal["ProjectDeleted"] = "ProjectDeleted"
    project_id: UUID


class ThreadCreated(Event):
    type: Literal["ThreadCreated"] = "ThreadCreated"
    thread_id: UUID
    project_id: UUID
    title: str | None = None
    provider: Provider
    model: str
    runtime_mode: RuntimeMode


class ThreadDeleted(Event):
    type: Literal["ThreadDeleted"] = "ThreadDeleted"
    thread_id: UUID


class ThreadSelected(Event):
    """The user selected this thread."""

    type: Literal["ThreadSelected"] = "ThreadSelected"
    thread_id: UUID


class ThreadStatusChanged(Event):
    """`error` is given if and only if `status` is `error`. What UTF-8 cannot encode in it becomes U+FFFD."""

    type: Literal["ThreadStatusChanged"] = "ThreadStatusChanged"
    thread_id: UUID
    status: ThreadStatus
    error: Annotated[str | None, MadeEncodable()] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_error_to_fit_status()
        return self

    @model_serializer(mode="wrap")
    def _write_only_if_it_can_be_read(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        self._require_error_to_fit_status()
        fields: dict[str, Any] = write(self)
        return fields

    def _require_error_to_fit_status(self) -> None:
        if (self.status is ThreadStatus.ERROR) != (self.error is not None):
            raise RuleError("'error' is given if and only if 'status' is 'error'")


class TurnStarted(Event):
    type: Literal["TurnStarted"] = "TurnStarted"
    turn_id: UUID
    thread_id: UUID


class TurnCompleted(Event):
    type: Literal["TurnCompleted"] = "TurnCompleted"
    turn_id: UUID
    thread_id: UUID


class TurnInterrupted(Event):
    """The turn was stopped before the agent had finished."""

    type: Literal["TurnInterrupted"] = "TurnInterrupted"
    turn_id: UUID
    thread_id: UUID


class TurnFailed(Event):
    """What UTF-8 cannot encode in `error` becomes U+FFFD, so that a failure can always be stored."""

    type: Literal["TurnFailed"] = "TurnFailed"
    turn_id: UUID
    thread_id: UUID
    error: Annotated[str, MadeEncodable()]


class MessageAppended(Event):
    type: Literal["MessageAppended"] = "MessageAppended"
    message_id: UUID
    turn_id: UUID
    thread_id: UUID
    role: MessageRole
    content: MessageContent

    @field_serializer("content", mode="wrap")
    def _write_intact(self, content: MessageContent, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        require_intact(content)
        fields: dict[str, Any] = write(content)
        return fields


class MessageChunkReceived(Event):
    """A piece of streamed text: `delta` is appended to the text of the message (text or thinking)."""

    type: Literal["MessageChunkReceived"] = "MessageChunkReceived"
    message_id: UUID
    turn_id: UUID
    thread_id: UUID
    delta: str


class ApprovalRequested(Event):
    """A supervised agent asks for permission to act; `detail` is what the provider says about the action."""

    type: Literal["ApprovalRequested"] = "ApprovalRequested"
    approval_id: UUID
    turn_id: UUID
    thread_id: UUID
    action: str
    detail: JsonValue


class ActionApproved(Event):
    type: Literal["ActionApproved"] = "ActionApproved"
    approval_id: UUID
    turn_id: UUID
    thread_id: UUID


class ActionRejected(Event):
    type: Literal["ActionRejected"] = "ActionRejected"
    approval_id: UUID
    turn_id: UUID
    thread_id: UUID
    reason: str | None = None


class CheckpointCreated(Event):
    """The state of the project's files was saved as a git reference."""

    type: Literal["CheckpointCreated"] = "CheckpointCreated"
    checkpoint_id: UUID
    thread_id: UUID
    turn_id: UUID
    git_ref: str


class CheckpointRestored(Event):
    type: Literal["CheckpointRestored"] = "CheckpointRestored"
    checkpoint_id: UUID
    thread_id: UUID


class ChangesCommitted(Event):
    """`commit` is the git object name."""

    type: Literal["ChangesCommitted"] = "ChangesCommitted"
    thread_id: UUID
    commit: str
    message: str


class BranchCreated(Event):
    type: Literal["BranchCreated"] = "BranchCreated"
    thread_id: UUID
    name: str


class BranchPushed(Event):
    type: Literal["BranchPushed"] = "BranchPushed"
    thread_id: UUID
    name: str
    remote: str


OrchestrationEvent = Annotated[
    ProjectCreated
    | ProjectRenamed
    | ProjectDeleted
    | ThreadCreated
    | ThreadDeleted
    | ThreadSelected
    | ThreadStatusChanged
    | TurnStarted
    | TurnCompleted
    | TurnInterrupted
    | TurnFailed
    | MessageAppended
    | MessageChunkReceived
    | ApprovalRequested
    | ActionApproved
    | ActionRejected
    | CheckpointCreated
    | CheckpointRestored
    | ChangesCommitted
    | BranchCreated
    | BranchPushed,
    Field(discriminator="type"),
]
"""The union of all events of the domain; pydantic distinguishes them by `type`."""
