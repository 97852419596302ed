"""What can be read of a damaged database is copied, and what cannot is reported."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers.damaged_files import damage_middle, damage_page, pages_of
from helpers.slow_proofs import rest_is_slow
from helpers.unavailable_databases import renamed
from sqlalchemy import URL, select

from peon.persistence import (
    Database,
    LostRow,
    PersistenceError,
    StoreUnavailable,
    UndecodableEvent,
    copy_database,
    salvage_database,
    schema,
)

EVENTS = 604
LONG = "x" * 400


@pytest.fixture
def path(migrated_sqlite_url: URL) -> Path:
    """A file with events, settings, receipts of commands and a position of a subscription."""
    with Database.open(url=migrated_sqlite_url, maintain_projections=False) as database:
        for number in range(0, EVENTS, 4):
            batch = [renamed(f"{place} {LONG}") for place in range(number + 1, number + 5)]
            database.events.append_all(batch, command_id=UUID(int=number))
        for number in range(100):
            database.settings.set(f"key {number:03}", LONG)
        with database.events.durable_subscription("mail", after=EVENTS - 1) as subscription:
            next(subscription)
            subscription.save_position()
    return Path(str(migrated_sqlite_url.database))


@pytest.fixture(params=["file", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = URL.create("sqlite", database=str(tmp_path / "target.db"))
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with Database.open(url=url, maintain_projections=False) as database:
        yield database


def opened(path: Path) -> Database:
    return Database.open(url=URL.create("sqlite", database=str(path)), maintain_projections=False)


def readable_one_by_one(path: Path) -> list[tuple[Any, ...]]:
    found = []
    with closing(sqlite3.connect(path)) as connection:
        for sequence in range(1, EVENTS + 1):
            try:
                row = connection.execute("SELECT * FROM events WHERE sequence = ?", [sequence]).fetchone()
            except sqlite3.DatabaseError:
                continue
            if row is not None:
                found.append(row)
    return found


@pytest.mark.parametrize(
    "number", rest_is_slow([30, 0, -1], first=1), ids=["a page in the middle", "the first page", "the last page"]
)
def test_all_events_outside_a_damaged_page_are_copied(path: Path, target: Database, number: int) -> None:
    damage_page(path, pages_of(path, "events")[number])
    rows = readable_one_by_one(path)
    expected = [row[0] for row in rows]
    assert EVENTS - 20 < len(expected) < EVENTS
    reported: list[tuple[int, int]] = []

    with opened(path) as source:
        with pytest.raises(StoreUnavailable, match=r"salvage_database\(\)"):
            source.events.replay_all(undecodable=UndecodableEvent)
        with pytest.raises(StoreUnavailable, match=r"salvage_database\(\)"):
            copy_database(source, target)
        assert target.events.last_sequence() == 0

        report = salvage_database(source, target, lambda *pair: reported.append(pair))

    with target.engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(select(schema.events).order_by("sequence"))] == rows
    assert report.events == len(expected)
    assert report.lost_sequences == tuple(sorted({*range(1, EVENTS + 1)} - {*expected}))
    assert report.incomplete_tables == ()
    assert reported[-1] == (EVENTS, EVENTS)
    assert target.settings.get("key 099") == LONG
    target.projections.catch_up()
    assert target.events.append_all([renamed("next")])[0].sequence == expected[-1] + 1


def test_a_sound_database_is_copied_whole(path: Path, target: Database) -> None:
    with opened(path) as source:
        report = salvage_database(source, target)

        assert report == (EVENTS, (), (), ())
        assert target.events.replay_all() == source.events.replay_all()


def test_a_command_whose_events_are_lost_is_not_repeated_with_others(path: Path, target: Database) -> None:
    damage_page(path, pages_of(path, "events")[-1])

    with opened(path) as source:
        report = salvage_database(source, target)

    last = UUID(int=EVENTS - 4)
    assert LostRow("command_receipts", str(last)) in report.lost_rows
    first = target.events.append_all([renamed("in the place of a lost one")])[0].sequence
    batch = [renamed(f"{place} {LONG}") for place in range(EVENTS - 3, EVENTS + 1)]
    assert target.events.append_all(batch, command_id=last)[0].sequence == first + 1


def test_a_subscription_beyond_the_last_copied_event_receives_the_next(path: Path, target: Database) -> None:
    damage_page(path, pages_of(path, "events")[-1])
    with opened(path) as source:
        salvage_database(source, target)

    (stored,) = target.events.append_all([renamed("next")])
    with target.events.durable_subscription("mail") as subscription:
        assert next(subscription) == stored


DAMAGED_SETTINGS = {
    "the table": ["settings"],
    "the index": ["sqlite_autoindex_settings_1"],
    "both": ["settings", "sqlite_autoindex_settings_1"],
}


@pytest.mark.parametrize("names", rest_is_slow(DAMAGED_SETTINGS.values(), first=1), ids=DAMAGED_SETTINGS)
def test_settings_outside_a_damaged_page_are_copied(path: Path, target: Database, names: list[str]) -> None:
    for name in names:
        damage_middle(path, name)

    with opened(path) as source:
        report = salvage_database(source, target)

    assert report.events == EVENTS
    with target.engine.connect() as connection:
        copied = {*connection.scalars(select(schema.settings.c.key))}
    lost = {row.key for row in report.lost_rows}
    assert {row.table for row in report.lost_rows} <= {"settings"}
    assert report.incomplete_tables == (("settings",) if len(names) == 2 else ())
    if len(names) == 1:
        assert copied | lost == {f"key {number:03}" for number in range(100)}
        assert (0 < len(lost) < 20) if names == ["settings"] else not lost


def test_rows_that_are_not_what_their_columns_say_are_lost(path: Path, target: Database) -> None:
    with closing(sqlite3.connect(path)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE events SET payload = CAST(x'ff00' AS TEXT) WHERE sequence = 7")
        connection.execute("UPDATE settings SET value = x'ff' WHERE key = 'key 005'")
        connection.execute("DELETE FROM events WHERE sequence = 9")
        for _, trigger in triggers:
            connection.execute(trigger)
        connection.commit()

    with opened(path) as source:
        report = salvage_database(source, target)

    assert report.lost_sequences == (7, 9)
    assert set(report.lost_rows) == {
        LostRow("settings", "key 005"),
        LostRow("command_receipts", str(UUID(int=4))),
        LostRow("command_receipts", str(UUID(int=8))),
    }


def test_only_into_an_empty_database_that_is_another(path: Path, target: Database) -> None:
    with opened(path) as source:
        with pytest.raises(PersistenceError, match="the same database"):
            salvage_database(source, source)
        target.events.append_all([renamed("x")])
        with pytest.raises(PersistenceError, match="not empty"):
            salvage_database(source, target)
