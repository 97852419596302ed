"""Child processes of the tests of subscriptions."""

import os
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from random import Random
from uuid import UUID

from helpers.processes import die
from sqlalchemy import text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database

CONSUMER = "mailer"

FORKED_CHILD_SECONDS = 20
"""Longer than any test waits for its parent's place."""


def append_names(url: str, names: list[str]) -> None:
    """Appends an event for each name, each in its own transaction."""
    with Database.open(url=url, maintain_projections=False) as database:
        for name in names:
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=name)])


def deliver(url: str, last: int, delivered: "Queue[tuple[int, int]]") -> None:
    """Reports each event that it is given before it saves the position; ends when the last one is saved."""
    with (
        Database.open(url=url, maintain_projections=False) as database,
        database.events.durable_subscription(CONSUMER) as subscription,
    ):
        for batch in subscription.batches(1, timeout=0.2):
            for stored in batch:
                delivered.put((os.getpid(), stored.sequence))
                subscription.save_position()
            if batch and subscription.position < last:
                continue
            with database.events.durable_subscription(CONSUMER) as saved:  # only read
                if saved.position == last:
                    return


def hold_until_killed(url: str, active: "Event") -> None:
    """Becomes the active consumer, and leaves a forked child behind that lives on."""
    with (
        Database.open(url=url, maintain_projections=False) as database,
        database.events.durable_subscription(CONSUMER) as subscription,
    ):
        next(subscription)
        subscription.save_position()
        if os.fork() == 0:
            active.set()
            time.sleep(FORKED_CHILD_SECONDS)
            os._exit(0)
        time.sleep(FORKED_CHILD_SECONDS)


def consume_until(url: str, last: int, seed: int | None) -> None:
    """Inserts a row for each event in the transaction that saves the position; with a seed, dies at a random point."""
    chance = Random(seed)

    def perhaps_die() -> None:
        if seed is not None and chance.random() < 0.02:
            die()

    with (
        Database.open(url=url, maintain_projections=False) as database,
        database.events.durable_subscription(CONSUMER) as subscription,
    ):
        while subscription.position < last:
            stored = next(subscription)
            perhaps_die()
            with database.engine.begin() as connection:
                connection.execute(text("INSERT INTO effects VALUES (:sequence)"), {"sequence": stored.sequence})
                perhaps_die()
                subscription.save_position(connection=connection)
                perhaps_die()
            perhaps_die()
