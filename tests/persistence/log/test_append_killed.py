"""Real processes that are killed with SIGKILL at random moments while they append."""

import multiprocessing
import os
import random
import signal
from multiprocessing.connection import Connection
from uuid import UUID

import pytest
import sqlalchemy
from sqlalchemy import URL, text

from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database

KILLS = 50


def batch(number: int, size: int) -> list[OrchestrationEvent]:
    return [ProjectRenamed(project_id=UUID(int=number), name=f"{number}: {part} of {size}") for part in range(size)]


def append_until_killed(url: str, first: int, seed: int, report: Connection) -> None:
    """Reports each batch as soon as it is acknowledged: its number, and the sequence of its last event."""
    sizes = random.Random(seed)
    with Database.open(url=url, maintain_projections=False) as database:
        number = first
        while True:
            stored = database.events.append_all(batch(number, sizes.choice([1, 1, 1, 2, 5, 40])))
            report.send((number, stored[-1].sequence))
            number += 1


def kill_once(url: str, first: int, seed: int) -> list[tuple[int, int]]:
    """Kills a child at a random moment, after a random number of reports; returns all its reports."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=append_until_killed, args=(url, first, seed, sender))
    child.start()
    sender.close()
    acknowledged = []
    chance = random.Random(seed)
    wanted = chance.randrange(1, 30)
    try:
        while True:
            acknowledged.append(receiver.recv())
            if len(acknowledged) == wanted:
                # Waits a little, so that the child is somewhere within its next appends.
                for _ in range(chance.randrange(200)):
                    os.sched_yield()
                os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
    except EOFError:
        child.join()
        return acknowledged
    finally:
        receiver.close()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("backend", ["file", "postgresql"])
def test_acknowledged_events_survive_sigkill(backend: str, request: pytest.FixtureRequest) -> None:
    url: URL = request.getfixturevalue("sqlite_url" if backend == "file" else "postgresql_url")
    address = url.render_as_string(hide_password=False)
    Database.open(url=address, maintain_projections=False).close()
    acknowledged: list[tuple[int, int]] = []
    first = 1
    for seed in range(KILLS):
        acknowledged += kill_once(address, first, seed)
        first = acknowledged[-1][0] + 2  # the batch after the last acknowledged one may have been stored

    with Database.open(url=address, maintain_projections=False) as database:
        log = database.events.replay_all()

    assert [stored.sequence for stored in log] == list(range(1, len(log) + 1))
    batches: dict[int, list[str]] = {}
    last_sequences: dict[int, int] = {}
    for stored in log:
        assert isinstance(stored.event, ProjectRenamed)
        number = stored.event.project_id.int
        batches.setdefault(number, []).append(stored.event.name)
        last_sequences[number] = stored.sequence
    assert list(batches) == sorted(batches)
    for number, names in batches.items():
        assert names == [event.name for event in batch(number, len(names))], "half a batch"  # type: ignore[union-attr]
    for number, sequence in acknowledged:
        assert last_sequences[number] == sequence
    if backend == "file":
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        engine.dispose()
