"""Redactions within the campaigns: how turns are redacted, and what must be true of them afterwards."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import UUID

from helpers.migrated_databases import file_of
from sqlalchemy import text

from peon.orchestration import MessageChunkReceived
from peon.persistence import Database, EventQuery

OTHER_TURNS = 6
"""Turns that a redaction takes at random, besides the last one of each thread, which a writer may still append to."""

_PART = re.compile(r"\[\d+\.\d+\.\d+\]")
"""How each chunk of the workload begins. Short, because a longer text may be divided among pages."""


class Acknowledged(NamedTuple):
    """What a redaction has answered. `by` is what it was called with, and names only this one."""

    by: str
    events: int


def redact_some(
    database: Database, threads: Collection[UUID], name: str, before_writing: Callable[[], None]
) -> Acknowledged | None:
    """Redacts a few turns; on SQLite, looks for their content in the files if nothing of it should remain.

    Args:
        before_writing: Called when the new rows are built, and most of what is left is to write.
    """
    turns = [[turn.id for turn in database.read_model.turns(thread)] for thread in threads]
    chosen = [of_thread.pop() for of_thread in turns if of_thread]
    if not chosen:
        return None
    others = [turn for of_thread in turns for turn in of_thread]
    chosen += Random(name).sample(others, min(OTHER_TURNS, len(others)))
    query = EventQuery.any_of(*(EventQuery(turn_id=turn) for turn in chosen))
    # First the end of the log: everything up to it will be redacted, or nothing.
    by = f"{name} after {database.events.last_sequence()}"
    told = (stored.event for stored in database.events.stream(query=query))
    parts = {part for event in told if isinstance(event, MessageChunkReceived) for part in _PART.findall(event.delta)}

    def report(done: int, total: int) -> None:
        if done >= total:
            before_writing()

    done = database.maintenance.redact(query, by=by, progress=report)
    if done.events and done.remains is None and database.engine.dialect.name == "sqlite":
        assert found_in_files(file_of(database.engine.url), parts) == set(), "the content is still in the files"
    return Acknowledged(by, done.events)


def found_in_files(file: Path, parts: Collection[str]) -> set[str]:
    """Returns which texts an SQLite database has in its files. Another process reads them.

    If this one closed a file that it has opened beside SQLite, it would lose the locks of SQLite.
    """
    files = [each for each in (file, file.with_name(f"{file.name}-wal")) if each.exists()]
    command = ["grep", "--text", "--only-matching", "--no-filename", "--fixed-strings", "--file=-", *map(str, files)]
    environment = os.environ | {"LC_ALL": "C"}
    given = "\n".join(parts)
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    # A -wal file that was removed meanwhile is an error to grep.
    assert done.returncode in (0, 1) or "No such file" in done.stderr, done.stderr
    return set(done.stdout.splitlines())


class Redacted(NamedTuple):
    """What was redacted.

    Attributes:
        acts: The number of redactions.
        sequences: The sequences of the events that were replaced.
        until: For each turn that was redacted, the sequence up to which it must not have any content.
    """

    acts: int
    sequences: set[int]
    until: Mapping[UUID, int]


def redacted_by_campaign(database: Database, acknowledged: Collection[Acknowledged] = ()) -> Redacted:
    """Returns what the record says, after comparing it with what the callers were told."""
    acts = database.maintenance.redactions()
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT sequence, redaction FROM redacted_events")).all()
    until: dict[UUID, int] = {}
    for act in acts:
        sequences = [sequence for sequence, number in rows if number == act.number]
        assert len(sequences) == act.events, "a redaction and its events are recorded differently"
        last = max([int(act.redacted_by.rpartition(" after ")[2]), *sequences])
        for item in json.loads(act.query):
            turn = UUID(item["turn_id"])
            until[turn] = max(last, until.get(turn, 0))
    recorded = {act.redacted_by: act.events for act in acts}
    assert len(recorded) == len(acts), "a redaction took place twice"
    for by, events in acknowledged:
        assert recorded.get(by, 0) == events, "an acknowledged redaction is not what is recorded"
    return Redacted(len(acts), {sequence for sequence, _ in rows}, until)
