"""Helpers of the tests of queries and append conditions."""

from typing import Any
from uuid import UUID

from peon.orchestration import (
    OrchestrationEvent,
    ThreadSelected,
)
from peon.persistence import (
    AppendCondition,
    ConcurrencyError,
    EventStore,
)

PROJECT, THREAD, TURN, OTHER = (UUID(int=n) for n in range(1, 5))


def padding(count: int) -> list[OrchestrationEvent]:
    return [ThreadSelected(thread_id=UUID(int=100 + n)) for n in range(count)]


def conflict(store: EventStore[Any], condition: AppendCondition) -> int | None:
    try:
        store.append_all([], condition=condition)
    except ConcurrencyError as error:
        return error.sequence
    return None
