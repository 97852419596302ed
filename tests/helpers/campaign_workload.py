"""What the campaigns append, and what must be true of the log afterwards, whatever happened meanwhile."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy
from helpers.campaign_redactions import Acknowledged, Redacted, redacted_by_campaign
from helpers.orchestration_scene import project, thread
from helpers.random_events import START
from sqlalchemy import Connection, text

from peon.orchestration import (
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    TextContent,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import Database, Difference, Problem, StoredEvent
from peon.persistence.operations.diagnosis import Diagnosed, Outcome, diagnose
from peon.persistence.operations.reading import opened_for_reading

CONSUMER = "campaign"
PROJECT = UUID(int=1 << 100)
WRITERS = 2
NO_AGE = timedelta(0)

Batch = tuple[int, int, int]
"""A batch by the numbers of its writer, of its turn, and of itself."""


FAILED = -1


class Attempt(NamedTuple):
    """A line of a writer's notes: a batch before it is appended, or with its sequences when that was acknowledged.

    If the append has failed, the sequences are `FAILED`.
    """

    batch: Batch
    first: int | None = None
    last: int | None = None


class Notes:
    """A file to which a writer adds a line with one system call, which a kill cannot divide."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def begins(self, batch: Batch) -> None:
        self._write(Attempt(batch))

    def acknowledged(self, batch: Batch, stored: list[StoredEvent[OrchestrationEvent]]) -> None:
        self._write(Attempt(batch, stored[0].sequence, stored[-1].sequence))

    def failed(self, batch: Batch) -> None:
        self._write(Attempt(batch, FAILED, FAILED))

    def _write(self, attempt: Attempt) -> None:
        os.write(self._descriptor, json.dumps(attempt).encode() + b"\n")


def attempts(file: Path) -> list[Attempt]:
    if not file.exists():
        return []
    lines = (json.loads(line) for line in file.read_text().splitlines())
    return [Attempt((batch[0], batch[1], batch[2]), first, last) for batch, first, last in lines]


def failed_batches(notes: list[Attempt]) -> set[Batch]:
    """Returns the batches whose last attempt has failed."""
    return {batch for batch, first in {each.batch: each.first for each in notes}.items() if first == FAILED}


def thread_of(writer: int) -> UUID:
    return UUID(int=(2 << 100) + writer % WRITERS)


def turn_id(writer: int, turn: int) -> UUID:
    return UUID(int=(3 << 100) + (writer << 32) + turn)


def message_id(writer: int, turn: int) -> UUID:
    return UUID(int=(4 << 100) + (writer << 32) + turn)


def scene() -> list[OrchestrationEvent]:
    place = project(PROJECT).model_copy(update={"path": "/home/ada/campaign"})
    return [place, *(thread(thread_of(writer), PROJECT) for writer in range(WRITERS))]


@cache
def batches_of(writer: int, turn: int) -> list[list[OrchestrationEvent]]:
    """Returns the same events each time: one streamed message, in batches of random sizes."""
    chance = Random(f"{writer}.{turn}")
    place: dict[str, Any] = {
        "turn_id": turn_id(writer, turn),
        "thread_id": thread_of(writer),
        "occurred_at": START + timedelta(seconds=turn),
    }
    message = message_id(writer, turn)
    content = TextContent(text="")
    events: list[OrchestrationEvent] = [
        TurnStarted(**place),
        MessageAppended(message_id=message, role=MessageRole.ASSISTANT, content=content, **place),
    ]
    for part in range(chance.randrange(3, 30)):
        delta = f"[{writer}.{turn}.{part}]" + "~" * chance.choice([0, 40, 400])
        events.append(MessageChunkReceived(message_id=message, delta=delta, **place))
    events.append(TurnCompleted(turn_id=place["turn_id"], thread_id=place["thread_id"], occurred_at=START))
    batches = []
    while events:
        size = chance.choice([1, 1, 2, 5, 12])
        batches.append(events[:size])
        events = events[size:]
    return batches


def text_of(batches: list[list[OrchestrationEvent]]) -> str:
    return "".join(event.delta for batch in batches for event in batch if isinstance(event, MessageChunkReceived))


class Found(NamedTuple):
    """What a check has counted. `erased` is the text of the acknowledged chunks that were redacted."""

    acknowledged: int
    merged: int
    redactions: int
    redacted: int
    effects: int
    erased: list[str]


def create_effects(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (sequence BIGINT, message TEXT, digest TEXT)"))


def take_effect(connection: Connection, stored: StoredEvent[OrchestrationEvent]) -> None:
    event = stored.event
    is_chunk = isinstance(event, MessageChunkReceived)
    values = {
        "sequence": stored.sequence,
        "message": str(event.message_id) if is_chunk else "",
        "digest": digest(event.delta) if is_chunk else "",
    }
    connection.execute(text("INSERT INTO effects VALUES (:sequence, :message, :digest)"), values)


def digest(delta: str) -> str:
    """Returns what an effect keeps of a text, which may have to leave the database; nothing of a redacted one."""
    return hashlib.sha256(delta.encode()).hexdigest() if delta else ""


def consume_all(database: Database) -> None:
    """Lets the consumer handle what is left."""
    with database.events.durable_subscription(CONSUMER) as subscription:
        while subscription.position < database.events.last_sequence():
            stored = next(subscription)
            with database.engine.begin() as connection:
                take_effect(connection, stored)
                subscription.save_position(connection=connection)


def numbers(ranges: Collection[Any]) -> Iterator[int]:
    for each in ranges:
        yield from range(each.first, each.last + 1)


class Shortcomings(NamedTuple):
    """What verifications and `peon doctor` find wrong: nothing, unless the database began with a contradiction."""

    differences: list[Difference]
    problems: list[Problem]
    findings: list[Diagnosed]


def shortcomings(database: Database) -> Shortcomings:
    if database.engine.dialect.name == "sqlite":
        check_sound(Path(str(database.engine.url.database)))
    with opened_for_reading(url=database.engine.url) as reading:
        found = [each for each in diagnose(reading) if each.finding.outcome is Outcome.FAILURE]
    return Shortcomings(database.projections.verify(), database.projections.problems(), found)


NONE = Shortcomings([], [], [])


def check(
    database: Database,
    notes: list[Attempt],
    removed_before: Collection[int],
    *,
    failed: Collection[Batch] = (),
    redactions: Collection[Acknowledged] = (),
    before: Shortcomings = NONE,
) -> Found:
    """Compares the database with what was acknowledged, after the consumer has handled all events.

    Args:
        notes: All that was tried, and all that was acknowledged.
        removed_before: The sequences without an event when the consumer was created.
        failed: Batches whose append has failed with the promise that nothing was stored.
        redactions: What redactions have answered.
        before: The shortcomings that the database has begun with.
    """
    log = {stored.sequence: stored.event for stored in database.events.stream()}
    removed = set(numbers(database.maintenance.removed_events()))
    everything = set(range(1, database.events.last_sequence() + 1))
    assert everything - log.keys() == removed, "a gap without a record"
    assert database.maintenance.lost_events() == []
    redacted = redacted_by_campaign(database, redactions)
    with database.engine.connect() as connection:
        merged = set(connection.scalars(text("SELECT sequence FROM merged_events")))
        effects = connection.execute(text("SELECT sequence, message, digest FROM effects ORDER BY sequence")).all()

    assert [row.sequence for row in effects] == sorted(everything - set(removed_before)), (
        "an event was not handled exactly once"
    )
    seen: dict[str, list[str]] = {}
    for row in effects:
        seen.setdefault(row.message, []).append(row.digest)

    acknowledged: dict[tuple[int, int], dict[int, int]] = {}
    count = 0
    for (writer, turn, number), first, last in notes:
        if first is not None and last is not None and first != FAILED:
            expected = batches_of(writer, turn)[number]
            assert last - first + 1 == len(expected)
            count += len(expected)
            acknowledged.setdefault((writer, turn), {})[number] = first
            for sequence, event in zip(range(first, last + 1), expected, strict=True):
                _check_acknowledged(sequence, event, turn_id(writer, turn), log, removed, merged, redacted)

    texts: dict[UUID, str] = {}
    starts: dict[UUID, int] = {}
    for event in log.values():
        if isinstance(event, MessageChunkReceived):
            texts[event.message_id] = texts.get(event.message_id, "") + event.delta
        elif isinstance(event, TurnStarted):
            starts[event.turn_id] = starts.get(event.turn_id, 0) + 1
    erased: list[str] = []
    for writer, turn in {attempt.batch[:2] for attempt in notes}:
        message = message_id(writer, turn)
        until = redacted.until.get(turn_id(writer, turn), 0)
        firsts = acknowledged.get((writer, turn), {})
        erased += _check_text(writer, turn, firsts, until, texts.get(message, ""), seen.get(str(message), []))
        assert starts.get(turn_id(writer, turn), 0) <= 1
    stored_turns = [event for event in log.values() if not isinstance(event, MessageChunkReceived)]
    for writer, turn, number in failed:
        for event in batches_of(writer, turn)[number]:
            if isinstance(event, MessageChunkReceived):
                assert event.delta not in texts.get(event.message_id, ""), "an append that failed was stored"
            else:
                assert event not in stored_turns, "an append that failed was stored"
    assert shortcomings(database) == before
    return Found(count, len(removed), redacted.acts, len(redacted.sequences), len(effects), erased)


def _check_acknowledged(
    sequence: int,
    event: OrchestrationEvent,
    turn: UUID,
    log: dict[int, OrchestrationEvent],
    removed: Collection[int],
    merged: Collection[int],
    redacted: Redacted,
) -> None:
    found = log.get(sequence)
    without_content = with_marker(event)
    is_redacted = sequence <= redacted.until.get(turn, 0) and without_content != event
    if found is None:
        assert isinstance(event, MessageChunkReceived)
        assert sequence in removed, "an acknowledged event was lost"
    elif is_redacted:
        assert found == without_content, "a redaction was stored in part"
        assert sequence in redacted.sequences
    elif found != event:
        assert isinstance(found, MessageChunkReceived)
        assert isinstance(event, MessageChunkReceived)
        assert sequence in merged
        assert found.message_id == event.message_id
        assert found.delta.endswith(event.delta)
    if found is not None and not is_redacted:
        assert sequence not in redacted.sequences


def with_marker(event: OrchestrationEvent) -> OrchestrationEvent:
    """Returns what a redaction must leave of an event of the workload."""
    if isinstance(event, MessageAppended):
        return event.model_copy(update={"content": TextContent(text="[redacted]")})
    if isinstance(event, MessageChunkReceived):
        return event.model_copy(update={"delta": ""})
    return event


def _check_text(writer: int, turn: int, firsts: dict[int, int], until: int, stored: str, seen: list[str]) -> list[str]:
    """Checks the text of a message: what is stored, and what the consumer was told.

    Args:
        firsts: Where each acknowledged batch begins.
        until: The sequence up to which the text was redacted.

    Returns:
        The text of the acknowledged chunks that were redacted.
    """
    deltas: list[str] = []
    ends = [0]  # the number of chunks after each number of batches
    sequences: dict[int, int] = {}
    for number, batch in enumerate(batches_of(writer, turn)):
        for place, event in enumerate(batch):
            if isinstance(event, MessageChunkReceived):
                if number in firsts:
                    sequences[len(deltas)] = firsts[number] + place
                deltas.append(event.delta)
        ends.append(len(deltas))
    # A batch that was on its way may have been stored as a whole; a part of a batch never is.
    end = len(seen)
    assert end in ends[max(firsts, default=-1) + 1 :], "half a batch, or twice"
    gone = [each for each, sequence in sequences.items() if sequence <= until]
    left = [each for each, sequence in sequences.items() if sequence > until]
    # Chunks of a batch without an answer may have been redacted, or appended later.
    least = max(gone, default=-1) + 1 if until else 0
    most = min(left, default=end) if until else 0
    assert stored in {"".join(deltas[first:end]) for first in range(least, most + 1)}, "another text"
    for number, told in enumerate(seen):
        assert told == digest(deltas[number]) or (told == "" and number < most), "the consumer was told something else"
    return [deltas[each] for each in gone]


def check_sound(file: Path) -> None:
    """Checks the file with SQLite itself, without Peon's engine."""
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    engine.dispose()
