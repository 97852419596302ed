"""Merges chunks in the log: one step of a compaction is one short transaction."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, update

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.removed import as_ranges, begin_step, record_merged, record_removed
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.maintenance import streamed_messages
from peon.persistence.maintenance.limits import lowest_position
from peon.persistence.maintenance.streamed_messages import MERGED_CHARACTERS, Merge
from peon.persistence.schema import events
from peon.persistence.schema.timestamps import format_timestamp

STEP_CHARACTERS = MERGED_CHARACTERS
"""Text after which a step ends early."""

_DELETE = CompiledStatement(
    delete(events).where(events.c.sequence.between(bindparam("first"), bindparam("last"))), ["first", "last"]
)
REPLACE_EVENT = CompiledStatement(
    update(events)
    .where(events.c.sequence == bindparam("of_event"))
    .values(event_type=bindparam("new_type"), payload=bindparam("new_payload")),
    ["new_type", "new_payload", "of_event"],
)


class Merged(NamedTuple):
    """What a step has done."""

    messages: int
    removed: int


def steps(merges: Iterable[Merge]) -> Iterator[list[Merge]]:
    """Divides merges among steps."""
    step: list[Merge] = []
    size = characters = 0
    for merge in merges:
        if step and (
            size + len(merge.sequences) > streamed_messages.STEP_EVENTS
            or characters + len(merge.event.delta) > STEP_CHARACTERS
        ):
            yield step
            step, size, characters = [], 0, 0
        step.append(merge)
        size += len(merge.sequences)
        characters += len(merge.event.delta)
    if step:
        yield step


class Merger:
    """Merges chunks in the log of `engine`."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._codec = codec
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._index = TagIndex(engine, driver_errors, codec.query_tags.lists)

    def merge(self, step: Sequence[Merge], seen: int) -> Merged | None:
        """Merges the chunks of a step in one transaction, without those that a consumer still has to read.

        Args:
            seen: The number of steps of compactions when the log was read.

        Returns:
            `None` if another compaction has taken a step since. Nothing was changed then.

        Raises:
            StoreUnavailable: The database cannot be used, or the outcome is unknown. The log is complete in any case.
        """
        columns = self._codec.encode(merge.event for merge in step)
        written = [*zip(*columns, (merge.sequences[-1] for merge in step), strict=True)]
        return in_own_transaction(
            self._engine, self._driver_errors, lambda connection: self._write(connection, step, written, seen)
        )

    def _write(
        self, connection: Connection, step: Sequence[Merge], written: Sequence[tuple[str, str, int]], seen: int
    ) -> Merged | None:
        self._backend.join_append(connection)
        if not begin_step(connection, seen):
            return None
        limit = lowest_position(connection)
        allowed = [(merge, row) for merge, row in zip(step, written, strict=True) if merge.end <= limit]
        if not allowed:
            return Merged(0, 0)
        moment = format_timestamp(datetime.now(UTC))
        removed = [sequence for merge, _ in allowed for sequence in merge.sequences[:-1]]
        ranges = as_ranges(removed)
        record_removed(connection, ranges, "compaction", moment)
        record_merged(connection, [merge.sequences for merge, _ in allowed], moment)
        self._index.remove(connection, [(merge.sequences[:-1], *row[:2]) for merge, row in allowed])
        with self._backend.changes_to_log(connection):
            _DELETE.run(connection, ranges)
            REPLACE_EVENT.run(connection, [row for _, row in allowed])
        return Merged(sum(merge.is_last for merge, _ in allowed), len(removed))
