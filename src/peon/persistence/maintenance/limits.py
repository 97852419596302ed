"""Up to where the log may be compacted: what a consumer still has to read stays in pieces."""

from typing import NamedTuple

from sqlalchemy import Connection, select

from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.schema import LAST_SEQUENCE, projection_positions, subscription_positions


class Consumer(NamedTuple):
    """A durable subscription or a projection, and its position in the log."""

    position: int
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} at {self.position}"


def consumers(connection: Connection) -> list[Consumer]:
    """Returns all durable subscriptions and projections, the one that is farthest behind first."""
    found = [
        Consumer(sequence, kind, name)
        for kind, table in (("projection", projection_positions), ("subscription", subscription_positions))
        for sequence, name in connection.execute(select(table.c.sequence, table.c.name))
    ]
    domain = OrchestrationProjection.name
    if not any(each.kind == "projection" and each.name == domain for each in found):
        found.append(Consumer(0, "projection", domain))  # it tells which events apply
    return sorted(found)


def lowest_position(connection: Connection) -> int:
    """Returns the lowest position of them, which is at most the end of the log."""
    end: int = connection.scalars(LAST_SEQUENCE).one()
    return min(end, consumers(connection)[0].position)
