"""Filters with any number of names, and with names that no database takes as a parameter.

The codec does not know these names, so the reads take undecodable events as well.
"""

import pytest
from helpers.conditions import THREAD, padding
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import text

from peon.orchestration import ThreadSelected, TurnStarted
from peon.persistence import Database, EventQuery, UndecodableEvent
from peon.persistence.backends.compiled import MAXIMUM_KEYS

MANY = [f"Event{number}" for number in range(300_000)]
"""More than PostgreSQL (65,535) or SQLite (32,766, or 250,000 in some builds) takes as parameters."""


def fill(database: Database) -> None:
    started = [TurnStarted(turn_id=THREAD, thread_id=THREAD) for _ in range(3)]
    database.events.append_all([*padding(10), *started, ThreadSelected(thread_id=THREAD), *padding(10)])


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("others", [[], MANY[: MAXIMUM_KEYS - 1], MANY[:MAXIMUM_KEYS], MANY])
def test_a_stream_takes_any_number_of_names(database: Database, others: list[str], newest_first: bool) -> None:
    fill(database)
    step = -1 if newest_first else 1

    def read(limit: int | None = None) -> list[int]:
        names = ["TurnStarted", *others]
        stream = database.events.stream(
            event_types=names, newest_first=newest_first, limit=limit, undecodable=UndecodableEvent
        )
        return [stored.sequence for stored in stream]

    assert read() == [11, 12, 13][::step]
    assert read(limit=2) == [11, 12, 13][::step][:2]
    assert read(limit=0) == []


@pytest.mark.parametrize("others", rest_is_slow([MANY[:5], MANY], first=1))
def test_a_query_takes_any_number_of_names(database: Database, others: list[str]) -> None:
    fill(database)
    query = EventQuery(event_types=["TurnStarted", *others])
    assert [stored.sequence for stored in database.events.stream(query=query, undecodable=UndecodableEvent)] == [
        11,
        12,
        13,
    ]


@pytest.mark.usefixtures("small_pages")
def test_a_subscription_takes_any_number_of_names(database: Database) -> None:
    fill(database)
    with database.events.subscribe(event_types=["TurnStarted", *MANY], undecodable=UndecodableEvent) as subscription:
        assert [next(subscription).sequence for _ in range(3)] == [11, 12, 13]
        database.events.append_all([TurnStarted(turn_id=THREAD, thread_id=THREAD)])
        assert next(subscription).sequence == 25


@pytest.mark.parametrize("name", ["Turn\0Started", "\ud83c", "é" * 600, ""])
def test_a_name_that_no_event_has_matches_none(database: Database, name: str) -> None:
    fill(database)
    for names, found in (([name], 0), ([name, "TurnStarted"], 3)):
        stream = database.events.stream(event_types=names, undecodable=UndecodableEvent)
        assert len(list(stream)) == found


def test_a_long_name_is_found(database: Database) -> None:
    name = "é" * 600
    with database.engine.begin() as connection:
        statement = text("INSERT INTO events VALUES (1, :name, '{}', '2025-03-14T09:26:53.589793Z')")
        connection.execute(statement, {"name": name})
    (kept,) = database.events.stream(event_types=[name], undecodable=UndecodableEvent)
    assert kept.sequence == 1
