"""Merges chunks in the log: one step of a compaction is one short transaction."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, update

from peon.orchestration import MessageChunkReceived
from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import MAXIMUM_KEYS, CompiledStatement
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.retries import in_own_transaction
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.removed import begin_step, record_merged, record_removed, steps_of_compaction
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.maintenance.limits import lowest_position
from peon.persistence.maintenance.streamed_messages import MERGED_CHARACTERS, Chunks
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.schema import events
from peon.persistence.schema.timestamps import format_timestamp

STEP_EVENTS = 2_000
"""Chunks that one transaction removes. Appends wait for it: about 30 ms on SQLite."""

STEP_CHARACTERS = 2 * MERGED_CHARACTERS
"""Text after which a step ends early."""

_DELETE = CompiledStatement(
    delete(events).where(events.c.sequence.between(bindparam("first"), bindparam("last"))), ["first", "last"]
)
_REPLACE = CompiledStatement(
    update(events).where(events.c.sequence == bindparam("of_event")).values(payload=bindparam("new_payload")),
    ["new_payload", "of_event"],
)


class Part(NamedTuple):
    """Chunks that one step merges: all chunks of a message, or some.

    Attributes:
        sequences: Their sequences. The merged event takes the place of the last one.
        end: See `Chunks`.
        is_last: Whether the merged event then holds all that it will hold.
    """

    sequences: Sequence[int]
    end: int
    is_last: bool


class Merged(NamedTuple):
    """What a step has done."""

    messages: int
    removed: int


class _Replacement(NamedTuple):
    part: Part
    rows: list[LogRow]
    payload: str


def steps(found: Iterable[Chunks]) -> Iterator[list[Part]]:
    """Divides chunks among steps. A message may take several: its merged event is then the first chunk of the next."""
    step: list[Part] = []
    size = characters = 0
    for sequences, length, end in found:
        start = 0
        while start < len(sequences) - 1:
            if step and (size >= STEP_EVENTS - 1 or characters + length > STEP_CHARACTERS):
                yield step
                step, size, characters = [], 0, 0
            part = sequences[start : start + STEP_EVENTS - size]
            start += len(part) - 1
            step.append(Part(part, end, start == len(sequences) - 1))
            size += len(part)
            characters += length
    if step:
        yield step


class Merger:
    """Merges chunks in the log of `engine`."""

    def __init__(self, engine: Engine, codec: EventCodec[Any], driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._codec = codec
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._log = LogPages(engine, driver_errors)
        self._index = TagIndex(engine, driver_errors)

    def merge(self, step: Sequence[Part]) -> Merged:
        """Merges the chunks of a step in one transaction.

        It leaves out parts that another compaction has merged meanwhile, and those that somebody still has to read.

        Raises:
            StoreUnavailable: The database cannot be used, or the outcome is unknown. The log is complete in any case.
        """
        merged = None
        while merged is None:
            # Without the write lock: only another compaction could change the rows, and that is noticed below.
            with self._driver_errors, self._backend.consistent_reads(self._engine).begin() as connection:
                seen = steps_of_compaction(connection)
                replacements = [*self._replacements(connection, step)]
            if not replacements:
                return Merged(0, 0)
            merged = in_own_transaction(
                self._engine,
                self._driver_errors,
                lambda own: self._write(own, seen, replacements),  # noqa: B023 - called at once
            )
        return merged

    def _replacements(self, connection: Connection, step: Sequence[Part]) -> Iterator[_Replacement]:
        rows = self._read(connection, sorted({sequence for part in step for sequence in part.sequences}))
        for part in with_pauses(step, connection.dialect):
            if not all(sequence in rows for sequence in part.sequences):
                continue
            own = [rows[sequence] for sequence in part.sequences]
            chunks = [self._codec.decode(*row[:3]) for row in own]
            last = chunks[-1]
            assert isinstance(last, MessageChunkReceived)  # noqa: S101
            whole = last.model_copy(update={"delta": "".join(chunk.delta for chunk in chunks)})
            (event_type,), (payload,) = self._codec.encode([whole])
            if event_type == own[-1][1]:
                yield _Replacement(part, own, payload)

    def _read(self, connection: Connection, sequences: Sequence[int]) -> dict[int, LogRow]:
        found: dict[int, LogRow] = {}
        remaining = iter(sequences)
        while some := [*islice(remaining, MAXIMUM_KEYS)]:
            while some:
                rows = self._log.read_rows(connection, some)
                found.update((row[0], row) for row in rows)
                # Large events end a page early. Of a complete page, the rest is missing.
                some = [sequence for sequence in some if sequence > rows[-1][0]] if rows else []
        return found

    def _write(self, connection: Connection, seen: int, replacements: Sequence[_Replacement]) -> Merged | None:
        """Returns `None` if another compaction has changed the log since the rows were read."""
        self._backend.join_append(connection)
        if not begin_step(connection, seen):
            return None
        limit = lowest_position(connection)
        allowed = [replacement for replacement in replacements if replacement.part.end <= limit]
        if not allowed:
            return Merged(0, 0)
        moment = format_timestamp(datetime.now(UTC))
        merges = [replacement.part.sequences for replacement in allowed]
        removed = [sequence for sequences in merges for sequence in sequences[:-1]]
        ranges = record_removed(connection, removed, "compaction", moment)
        record_merged(connection, merges, moment)
        self._index.remove(connection, [row for replacement in allowed for row in replacement.rows[:-1]])
        with self._backend.changes_to_log(connection):
            _DELETE.run(connection, ranges)
            _REPLACE.run(connection, [(each.payload, each.part.sequences[-1]) for each in allowed])
        return Merged(sum(replacement.part.is_last for replacement in allowed), len(removed))
