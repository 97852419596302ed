"""Child processes of the tests of the asynchronous API."""

import asyncio
from uuid import uuid4

from peon.orchestration import ProjectCreated
from peon.persistence.asynchronous import AsyncDatabase

BATCH = 50


def end_the_event_loop_in_the_middle(url: str) -> None:
    async def append_without_waiting() -> None:
        database = await AsyncDatabase.open(url=url)
        appends = []
        for number in range(20):
            batch = [ProjectCreated(project_id=uuid4(), name=str(number), path="/") for _ in range(BATCH)]
            appends.append(asyncio.create_task(database.events.append_all(batch)))
        await appends[0]

    asyncio.run(append_without_waiting())
