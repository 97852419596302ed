"""An application whose disk cannot sync the second append."""

import asyncio
import errno
import sys
from pathlib import Path

from helpers.failing_disk import ALWAYS, SYNCS_ONLY, FailingDisk
from helpers.processes import die
from helpers.unavailable_databases import renamed, sqlite

from peon import AsyncDatabase
from peon.persistence import Database, StoreUnavailable

BEFORE, UNKNOWN = [renamed("before")], [renamed("unknown")]


def say(text: str) -> None:
    print(text.replace("sqlite+aiosqlite:", "sqlite:"), flush=True)  # noqa: T201


def in_threads(disk: FailingDisk, path: Path, afterwards: str) -> None:
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        database.events.append_all(BEFORE)
        disk.fail(ALWAYS, errno.EIO, SYNCS_ONLY)
        try:
            database.events.append_all(UNKNOWN)
        except StoreUnavailable as error:
            say(str(error))
        disk.heal()
        say(f"visible: {database.events.last_sequence()}")
        if "repeated" in afterwards:
            database.events.append_all(UNKNOWN)
        if "killed" in afterwards:
            die()


async def in_tasks(disk: FailingDisk, path: Path, afterwards: str) -> None:
    async with await AsyncDatabase.open(url=sqlite(path), maintain_projections=False) as database:
        await database.events.append_all(BEFORE)
        disk.fail(ALWAYS, errno.EIO, SYNCS_ONLY)
        try:
            await database.events.append_all(UNKNOWN)
        except StoreUnavailable as error:
            say(str(error))
        disk.heal()
        say(f"visible: {await database.events.last_sequence()}")
        if "repeated" in afterwards:
            await database.events.append_all(UNKNOWN)
        if "killed" in afterwards:
            die()


def main(switches: str, file: str, kind: str, afterwards: str) -> None:
    path = Path(file)
    path.parent.mkdir()
    disk = FailingDisk(Path(switches), path.parent, 1)
    if kind == "threads":
        in_threads(disk, path, afterwards)
    else:
        asyncio.run(in_tasks(disk, path, afterwards))


if __name__ == "__main__":
    main(*sys.argv[1:])
