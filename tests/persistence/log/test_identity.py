"""The identity of a log: clients notice that a position is of another log."""

import asyncio

from sqlalchemy import URL

from peon.persistence import Database, copy_database
from peon.persistence.asynchronous import AsyncDatabase


def test_the_identity_stays_until_it_is_renewed(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        first = database.events.log_id()
        assert database.events.log_id() == first
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        assert database.events.log_id() == first
        second = database.events.renew_log_id()
        assert second != first
        assert database.events.log_id() == second


def test_each_database_has_its_own_identity(url: URL, sqlite_url: URL) -> None:
    other_url = sqlite_url.set(database=f"{sqlite_url.database}.other")
    with (
        Database.open(url=url, maintain_projections=False) as database,
        Database.open(url=other_url, maintain_projections=False) as other,
    ):
        before = other.events.log_id()
        assert database.events.log_id() != before
        copy_database(database, other)
        assert other.events.log_id() == before


def test_the_identity_is_read_and_renewed_in_an_event_loop(url: URL, migrated: None) -> None:
    async def story() -> None:
        async with await AsyncDatabase.open(url=url, maintain_projections=False) as database:
            first = await database.events.log_id()
            second = await database.events.renew_log_id()
            assert first != second == await database.events.log_id()

    asyncio.run(story())
