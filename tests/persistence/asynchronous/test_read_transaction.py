"""`AsyncDatabase.read_transaction` sees one committed state, and blocks no writer."""

import asyncio
from uuid import UUID

from helpers.processes import PATIENCE
from sqlalchemy import URL, func, select

from peon import AsyncDatabase
from peon.orchestration import ProjectCreated
from peon.persistence.schema import events

COUNT = select(func.count()).select_from(events)


def test_a_read_transaction_sees_one_committed_state_and_blocks_no_writer(migrated_lasting_url: URL) -> None:
    async def story() -> None:
        async with await AsyncDatabase.open(url=migrated_lasting_url) as database:
            async with database.read_transaction() as connection:
                before = await connection.scalar(COUNT)
                await database.events.append_all([ProjectCreated(project_id=UUID(int=1), name="tides", path="/")])

                assert (before, await connection.scalar(COUNT)) == (0, 0)
            async with database.read_transaction() as connection:
                assert await connection.scalar(COUNT) == 1

    asyncio.run(asyncio.wait_for(story(), PATIENCE))
