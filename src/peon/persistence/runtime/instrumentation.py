"""What the parts of the package tell about their operations. These classes do nothing: see `telemetry_of`."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Literal, Self

OperationName = Literal["append", "replay", "catch_up", "rebuild", "migrate"]
RetryReason = Literal["undone", "connection_lost"]


class Operation:
    """A call on the database: a span, and a duration. This one does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def as_current(self) -> AbstractContextManager[object]:
        """Makes this the operation to which the statements of a shared commit belong."""
        return nullcontext()

    def handled(self, events: int) -> None:
        """Says how many events were appended, read or applied."""

    def committed(self, requests: int, lock_seconds: float) -> None:
        """Says how many requests shared the commit, and how long it waited for the lock that orders appends."""

    def repeated(self) -> None:
        """Says that the command of the append was performed before, so that nothing was stored."""


class Telemetry:
    """The spans and metrics of one database. This one does nothing."""

    def operation(self, name: OperationName, **attributes: str) -> Operation:  # noqa: ARG002
        """Returns the operation, for a `with` statement.

        Args:
            attributes: Of the span, without the prefix `peon.`; an underscore stands for a dot.
        """
        return _NO_OPERATION

    def waited(self, seconds: float) -> None:
        """Records the wait of one transaction for the lock that orders appends."""

    def retried(self, reason: RetryReason) -> None:
        """Counts a transaction that is repeated."""

    def subscription_lag(self, seconds: float, name: str | None) -> None:
        """Records the age of the oldest event that a subscription had not read yet.

        Args:
            name: Of a durable subscription.
        """

    def projection_lag(self, name: str, events: int) -> None:
        """Records how many stored events a projection has not applied."""

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return False


_NO_OPERATION = Operation()
