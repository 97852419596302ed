"""Compaction: the chunks of a streamed message become one event when they are old enough."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from peon.orchestration import OrchestrationEvent, event_type_name
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import LogPages
from peon.persistence.log.removed import steps_of_compaction
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.maintenance.limits import consumers, lowest_position
from peon.persistence.maintenance.merging import Merged, Merger, steps
from peon.persistence.maintenance.streamed_messages import FOLLOWED, Merge, StreamedMessages
from peon.persistence.orchestration.codec import orchestration_codec
from peon.persistence.projections.replay import Meter, Progress
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.schema import LAST_SEQUENCE, projection_problems

_PASSED_BY = frozenset(orchestration_codec.decoders) - {event_type_name(event) for event in FOLLOWED}
"""The names of the domain's other events, which need not be decoded."""


class Compaction(NamedTuple):
    """What a compaction has done, or would do.

    Attributes:
        messages: The number of events that now hold the text of several.
        removed: The number of events that were removed from the log.
        until: The sequence up to which the log was looked at.
        held_back_by: The durable subscriptions and projections that have not read the log to its end, as text, the one
            that is farthest behind first. What they still have to read stays as it is.
    """

    messages: int
    removed: int
    until: int
    held_back_by: tuple[str, ...]


class Compactor:
    """Compacts the log of `engine`."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._codec = codec
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)
        self._merger = Merger(engine, codec, driver_errors)

    def compact(self, older_than: timedelta, progress: Progress | None, *, dry_run: bool) -> Compaction:
        stored_before = datetime.now(UTC) - older_than
        with self._driver_errors, backend_of(self._engine).consistent_reads(self._engine).begin() as connection:
            until = lowest_position(connection)
            end = connection.scalars(LAST_SEQUENCE).one()
            behind = tuple(str(consumer) for consumer in consumers(connection) if consumer.position < end)
            refused = frozenset(connection.scalars(select(projection_problems.c.sequence)))
            seen = steps_of_compaction(connection)
        merges = self._merges(StreamedMessages(refused, stored_before), until, Meter(progress, until))
        messages = removed = 0
        for taken, step in enumerate(steps(merges)):
            if dry_run:
                done = Merged(sum(merge.is_last for merge in step), sum(len(merge.sequences) - 1 for merge in step))
            elif (merged := self._merger.merge(step, seen + taken)) is not None:
                done = merged
            else:
                break
            messages += done.messages
            removed += done.removed
        return Compaction(messages, removed, until, behind)

    def _merges(self, streamed: StreamedMessages, until: int, meter: Meter) -> Iterator[Merge]:
        for stored in self._events(until, meter):
            yield from streamed.follow(stored)
        meter.finish()

    def _events(self, until: int, meter: Meter) -> Iterator[StoredEvent[OrchestrationEvent]]:
        done = 0
        for page in self._log.read(0, None):
            last = min(page[-1][0], until)
            rows = [row for row in page if row[0] <= until and row[1] not in _PASSED_BY]
            yield from with_pauses(decoded([rows], self._codec, keep=True), self._engine.dialect)
            meter.add(last - done)
            done = last
            if last == until:
                return
