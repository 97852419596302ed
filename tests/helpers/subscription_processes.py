"""Child processes of the tests of subscriptions."""

from random import Random
from uuid import UUID

from helpers.processes import die
from sqlalchemy import text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database

CONSUMER = "mailer"


def append_names(url: str, names: list[str]) -> None:
    """Appends an event for each name, each in its own transaction."""
    with Database.open(url=url, maintain_projections=False) as database:
        for name in names:
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=name)])


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
