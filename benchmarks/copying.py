"""Copying a database to the other backend: seconds to copy, to compare, and to build and verify the projections.

python benchmarks/copying.py [--url postgresql+psycopg://…] [--events 100000] [--folder FOLDER]
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from postgresql_server import DEFAULT_URL, new_schema
from rich.console import Console
from sqlalchemy import URL, make_url
from tables import Table
from workload import SAMPLE, batches_of, seconds, session_events

from peon import Database, copy_database

EVENTS = 100_000


@dataclass(frozen=True)
class Copy:
    """Seconds that each step of a copy took.

    Attributes:
        megabytes: Size of the SQLite file that holds the log.
    """

    direction: str
    events: int
    megabytes: float
    copy: float
    compare: float
    catch_up: float
    verify: float


def copy(source: Database, target: Database, direction: str, megabytes: float) -> Copy:
    start = time.perf_counter()
    copied = start

    def note(done: int, total: int) -> None:
        nonlocal copied
        if 2 * done <= total:  # `copy_database` counts each event twice: when it is copied and when it is compared
            copied = time.perf_counter()

    events = copy_database(source, target, note)
    compared = time.perf_counter()
    return Copy(
        direction=direction,
        events=events,
        megabytes=megabytes,
        copy=copied - start,
        compare=compared - copied,
        catch_up=seconds(target.projections.catch_up),
        verify=seconds(target.projections.verify),
    )


def measure(folder: Path, server: URL, console: Console, *, events: int = EVENTS) -> list[Copy]:
    """Copies a log from SQLite to PostgreSQL, and from there to another SQLite file, once each."""
    original = folder / "original.db"
    with ExitStack() as stack:

        def open_log(url: URL) -> Database:
            return stack.enter_context(Database.open(url=url, maintain_projections=False))

        address = make_url(f"sqlite:///{original}")
        with console.status(f"Filling with {events:,} events"), open_log(address) as database:
            for batch in batches_of(session_events(SAMPLE, events), 1_000):
                database.events.append_all(batch)
        megabytes = original.stat().st_size / 1e6  # complete once it is closed: the last close empties the -wal file
        source = open_log(address)
        middle = open_log(stack.enter_context(new_schema(server)))
        target = open_log(make_url(f"sqlite:///{folder}/copy.db"))
        with console.status("Copying to PostgreSQL"):
            there = copy(source, middle, "SQLite to PostgreSQL", megabytes)
        with console.status("Copying to SQLite"):
            back = copy(middle, target, "PostgreSQL to SQLite", megabytes)
    return [there, back]


def table(results: list[Copy]) -> Table:
    rows = [
        (
            result.direction,
            *(f"{part:.1f} s" for part in (result.copy, result.compare, result.catch_up, result.verify)),
        )
        for result in results
    ]
    return Table(("direction", "copy", "compare", "`catch_up`", "`verify`"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", type=make_url, default=DEFAULT_URL, help="a database in which schemas may be created")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--folder", type=Path, help="where the SQLite databases are created")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments.url, console, events=arguments.events)
    console.print(f"{results[0].events:,} events of the sample session, {results[0].megabytes:.0f} MB.")
    console.print(table(results).for_terminal())


if __name__ == "__main__":
    main()
