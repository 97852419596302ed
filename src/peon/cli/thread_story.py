"""Tells what has happened in a thread, from its events alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import singledispatchmethod
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from peon.cli.raw_events import RawStored, parsed
from peon.orchestration import (
    ActionApproved,
    ActionRejected,
    ApprovalRequested,
    BranchCreated,
    BranchPushed,
    ChangesCommitted,
    CheckpointCreated,
    CheckpointRestored,
    MessageAppended,
    MessageChunkReceived,
    TextContent,
    ThinkingContent,
    ThreadCreated,
    ThreadDeleted,
    ThreadSelected,
    ThreadStatusChanged,
    ToolCallContent,
    ToolResultContent,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from peon.persistence import EventDecodeError
from peon.persistence.orchestration.codec import orchestration_codec


@dataclass(eq=False)
class Episode:
    """Something that has happened in a thread.

    Attributes:
        kind: For example "turn", "message" or "tool".
        title: What it is, in a few words.
        sequences: The events that tell of it.
        at: When it began.
        until: When it ended, if it takes time and has ended.
        turn_id: The turn in which it happened.
        parts: What was said, called or returned; a streamed text has many parts.
        is_wrong: Whether a person who looks for an error should look here.
    """

    kind: str
    title: str
    sequences: list[int]
    at: datetime | None
    until: datetime | None = None
    turn_id: UUID | None = None
    parts: list[str] = field(default_factory=list)
    is_wrong: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, sequence: int, until: datetime | None, title: str) -> None:
        self.sequences.append(sequence)
        self.until = until
        self.title += title


@dataclass
class Story:
    """The episodes of a thread in the order in which they began.

    Attributes:
        episodes: They know their events.
        created: The event that created the thread.
    """

    episodes: list[Episode] = field(default_factory=list)
    created: ThreadCreated | None = None
    _turns: dict[UUID, Episode] = field(default_factory=dict, repr=False)
    _messages: dict[UUID, Episode] = field(default_factory=dict, repr=False)
    _calls: dict[str, Episode] = field(default_factory=dict, repr=False)
    _approvals: dict[UUID, Episode] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, events: Iterable[RawStored]) -> "Story":
        """Returns the story that the stored events of a thread tell."""
        story = cls()
        for stored in events:
            try:
                event = orchestration_codec.decode(stored.sequence, stored.event.event_type, stored.event.payload)
            except EventDecodeError as error:
                story._add_undecodable(stored, error.reason)
                continue
            story._tell(event, stored.sequence)
        story._say_what_is_open()
        return story

    def _say_what_is_open(self) -> None:
        begun = [(each, " running") for each in self._turns.values()]
        begun += [(each, "without a result") for each in self._calls.values()]
        begun += [(each, "undecided") for each in self._approvals.values()]
        for episode, words in begun:
            if episode.until is None:
                episode.title += words

    def _add(
        self, kind: str, title: str, sequence: int, event: Any, *, text: str = "", is_wrong: bool = False
    ) -> Episode:
        turn_id: UUID | None = getattr(event, "turn_id", None)
        episode = Episode(kind, title, [sequence], event.occurred_at, None, turn_id, [text], is_wrong)
        self.episodes.append(episode)
        return episode

    def _add_undecodable(self, stored: RawStored, reason: str) -> None:
        fields = parsed(stored.event.payload)
        text = "" if fields is None else to_json(fields).decode()
        title = f"{stored.event.event_type} cannot be decoded: {reason}"
        self.episodes.append(
            Episode("undecodable", title, [stored.sequence], stored.stored_at, parts=[text], is_wrong=True)
        )

    @singledispatchmethod
    def _tell(self, event: Any, sequence: int) -> None:
        self._add("event", event.type, sequence, event)

    @_tell.register
    def _(self, event: ThreadCreated, sequence: int) -> None:
        self.created = self.created or event
        self._add("thread", "thread created", sequence, event)

    @_tell.register
    def _(self, event: ThreadDeleted, sequence: int) -> None:
        self._add("thread", "thread deleted", sequence, event)

    @_tell.register
    def _(self, event: ThreadSelected, sequence: int) -> None:
        self._add("thread", "thread selected", sequence, event)

    @_tell.register
    def _(self, event: ThreadStatusChanged, sequence: int) -> None:
        is_wrong = event.error is not None
        self._add("status", f"status {event.status.value}", sequence, event, text=event.error or "", is_wrong=is_wrong)

    @_tell.register
    def _(self, event: TurnStarted, sequence: int) -> None:
        self._turns[event.turn_id] = self._add("turn", "turn", sequence, event)

    @_tell.register
    def _(self, event: TurnCompleted, sequence: int) -> None:
        self._end_turn(event, sequence, "completed")

    @_tell.register
    def _(self, event: TurnInterrupted, sequence: int) -> None:
        self._end_turn(event, sequence, "interrupted")

    @_tell.register
    def _(self, event: TurnFailed, sequence: int) -> None:
        episode = self._end_turn(event, sequence, "failed")
        episode.parts, episode.is_wrong = [event.error], True

    def _end_turn(self, event: TurnCompleted | TurnInterrupted | TurnFailed, sequence: int, how: str) -> Episode:
        episode = self._turns.get(event.turn_id)
        if episode is None:
            return self._add("turn", f"turn {how}, which has not started", sequence, event, is_wrong=True)
        episode.add(sequence, event.occurred_at, f" {how}")
        return episode

    @_tell.register
    def _(self, event: MessageAppended, sequence: int) -> None:
        content, role = event.content, event.role.value
        match content:
            case ToolCallContent():
                text = to_json(content.arguments).decode()
                self._calls[content.tool_call_id] = self._add("tool", f"{content.name} ", sequence, event, text=text)
            case ToolResultContent():
                self._add_result(content, event, sequence)
            case TextContent():
                self._messages[event.message_id] = self._add("message", role, sequence, event, text=content.text)
            case ThinkingContent():
                self._messages[event.message_id] = self._add(
                    "thinking", f"{role} thinks", sequence, event, text=content.text
                )

    def _add_result(self, content: ToolResultContent, event: MessageAppended, sequence: int) -> None:
        text = content.output if isinstance(content.output, str) else to_json(content.output).decode()
        call = self._calls.get(content.tool_call_id)
        outcome = "failed" if content.is_error else "ok"
        if call is None:
            title = f"result of an unknown tool call: {outcome}"
            self._add("tool", title, sequence, event, text=text, is_wrong=True)
            return
        call.add(sequence, event.occurred_at, outcome)
        call.parts.append(f"\n{text}")
        call.is_wrong = content.is_error

    @_tell.register
    def _(self, event: MessageChunkReceived, sequence: int) -> None:
        episode = self._messages.get(event.message_id)
        if episode is None:
            episode = self._add("message", "text of an unknown message", sequence, event, is_wrong=True)
            self._messages[event.message_id] = episode
        else:
            episode.sequences.append(sequence)
            episode.until = event.occurred_at
        episode.parts.append(event.delta)

    @_tell.register
    def _(self, event: ApprovalRequested, sequence: int) -> None:
        text = to_json(event.detail).decode()
        self._approvals[event.approval_id] = self._add("approval", f"{event.action}? ", sequence, event, text=text)

    @_tell.register
    def _(self, event: ActionApproved, sequence: int) -> None:
        self._decide(event, sequence, "approved")

    @_tell.register
    def _(self, event: ActionRejected, sequence: int) -> None:
        self._decide(event, sequence, "rejected" + (f": {event.reason}" if event.reason else ""))

    def _decide(self, event: ActionApproved | ActionRejected, sequence: int, how: str) -> None:
        episode = self._approvals.get(event.approval_id)
        if episode is None:
            self._add("approval", f"{how}, which nobody has asked for", sequence, event, is_wrong=True)
        else:
            episode.add(sequence, event.occurred_at, how)

    @_tell.register
    def _(self, event: CheckpointCreated, sequence: int) -> None:
        self._add("checkpoint", f"checkpoint {event.git_ref}", sequence, event)

    @_tell.register
    def _(self, event: CheckpointRestored, sequence: int) -> None:
        self._add("checkpoint", f"checkpoint {event.checkpoint_id} restored", sequence, event)

    @_tell.register
    def _(self, event: ChangesCommitted, sequence: int) -> None:
        self._add("git", f"commit {event.commit}", sequence, event, text=event.message)

    @_tell.register
    def _(self, event: BranchCreated, sequence: int) -> None:
        self._add("git", f"branch {event.name} created", sequence, event)

    @_tell.register
    def _(self, event: BranchPushed, sequence: int) -> None:
        self._add("git", f"branch {event.name} pushed to {event.remote}", sequence, event)
