"""What an application leaves open when it is killed, and the events that close it."""

from collections.abc import Collection
from uuid import UUID, uuid5

from peon.orchestration.events import ActionRejected, ThreadStatusChanged, TurnInterrupted
from peon.orchestration.model import Approval, ThreadStatus, ThreadSummary, Turn, Value

_NAMESPACE = UUID("5a1f7c1e-6d0c-4b57-9a53-0f5f2d0e7c41")

REASON = "interrupted: the application ended"


class UnfinishedWork(Value):
    """What is under way. When an application starts, it is what the process before it left open.

    `turns` are running, `pending_approvals` wait for a decision of the user, and `threads` have the status `running` or
    `awaiting_approval`.
    """

    turns: tuple[Turn, ...]
    pending_approvals: tuple[Approval, ...]
    threads: tuple[ThreadSummary, ...]

    def of_threads(self, thread_ids: Collection[UUID]) -> "UnfinishedWork":
        """Returns the part that belongs to some threads, for example to those of one of several processes."""
        return UnfinishedWork(
            turns=tuple(turn for turn in self.turns if turn.thread_id in thread_ids),
            pending_approvals=tuple(each for each in self.pending_approvals if each.thread_id in thread_ids),
            threads=tuple(thread for thread in self.threads if thread.id in thread_ids),
        )

    @property
    def command_id(self) -> UUID:
        """Identifies the command that closes exactly this, so that processes which start together close it once."""
        open_ids = [
            *(turn.id for turn in self.turns),
            *(approval.id for approval in self.pending_approvals),
            # A thread may be left open more than once.
            *(f"{thread.id}@{thread.last_sequence}" for thread in self.threads),
        ]
        return uuid5(_NAMESPACE, " ".join(map(str, open_ids)))

    def closing_events(self) -> tuple[ActionRejected | TurnInterrupted | ThreadStatusChanged, ...]:
        """Returns the events that reject the approvals, interrupt the turns and make the threads idle."""
        rejections = [
            ActionRejected(
                approval_id=approval.id, turn_id=approval.turn_id, thread_id=approval.thread_id, reason=REASON
            )
            for approval in self.pending_approvals
        ]
        interruptions = [TurnInterrupted(turn_id=turn.id, thread_id=turn.thread_id) for turn in self.turns]
        idle = [ThreadStatusChanged(thread_id=thread.id, status=ThreadStatus.IDLE) for thread in self.threads]
        return (*rejections, *interruptions, *idle)
