"""Exporting a log to a file, importing it, and backing up: events a second, and the memory that each adds.

python benchmarks/exporting.py [--url postgresql+psycopg://…] [--no-postgresql] [--events 300000] [--folder FOLDER]
"""

import argparse
import multiprocessing
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from open_and_memory_process import resident_bytes
from postgresql_server import add_server_arguments, new_schema
from rich.console import Console
from sqlalchemy import URL, make_url
from tables import Table
from workload import SAMPLE, batches_of, session_events

from peon import Database, back_up_database, export_log, import_log

EVENTS = 300_000

TARGET_EVENTS_A_SECOND = 100_000
"""Of an export to JSON Lines."""


@dataclass(frozen=True)
class Step:
    """One step in a process of its own.

    Attributes:
        added_mb: How far the resident memory rose above what it was when the database was open.
    """

    name: str
    events_a_second: float
    added_mb: float


def measured(work: str, url: URL, file: Path) -> tuple[int, float, float]:
    """Returns the number of events, the seconds and the added memory; runs in a new process."""
    with Database.open(url=url, maintain_projections=False) as database:
        before = highest = resident_bytes()

        def look(_done: int, _total: int) -> None:
            nonlocal highest
            highest = max(highest, resident_bytes())

        start = time.perf_counter()
        if work == "export":
            events = export_log(database.engine, file, progress=look).events
        elif work == "back up":
            events = back_up_database(database.engine, file, progress=look).events
        else:
            report = import_log(database.engine, file, append=work == "append", progress=look)
            events = report.events
        return events, time.perf_counter() - start, (highest - before) / 1e6


def step(name: str, work: str, url: URL, file: Path) -> Step:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        events, seconds, added_mb = pool.apply(measured, (work, url, file))
    return Step(name, events / seconds, added_mb)


def measure(folder: Path, server: URL | None, console: Console, *, events: int) -> list[Step]:
    source = make_url(f"sqlite:///{folder}/source.db")
    with (
        console.status(f"Filling with {events:,} events"),
        Database.open(url=source, maintain_projections=False) as log,
    ):
        for batch in batches_of(session_events(SAMPLE, events), 1_000):
            log.events.append_all(batch)
    lines, packed = folder / "log.jsonl", folder / "log.jsonl.gz"
    steps = [
        step("SQLite, export", "export", source, lines),
        step("SQLite, export with gzip", "export", source, packed),
        step("SQLite, import", "import", make_url(f"sqlite:///{folder}/imported.db"), lines),
        step("SQLite, import --append", "append", make_url(f"sqlite:///{folder}/appended.db"), lines),
        step("SQLite, backup", "back up", source, folder / "backup.db"),
        step("SQLite, backup with gzip", "back up", source, folder / "backup.db.gz"),
    ]
    if server is not None:
        with ExitStack() as stack:
            target = stack.enter_context(new_schema(server))
            steps.append(step("PostgreSQL, import", "import", target, lines))
            steps.append(step("PostgreSQL, export", "export", target, folder / "other.jsonl"))
            steps.append(step("PostgreSQL, backup", "back up", target, folder / "backup.dump"))
    return steps


def table(steps: list[Step]) -> Table:
    rows = [(each.name, f"{each.events_a_second:,.0f}", f"{each.added_mb:.0f} MB") for each in steps]
    return Table(("step", "events a second", "added memory"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_server_arguments(parser)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--folder", type=Path, help="where the files are created")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        server = make_url(arguments.url) if arguments.postgresql else None
        steps = measure(Path(folder), server, console, events=arguments.events)
    console.print(table(steps).for_terminal())
    reached = steps[0].events_a_second >= TARGET_EVENTS_A_SECOND
    console.print(f"An export of {TARGET_EVENTS_A_SECOND:,} events a second was {'reached' if reached else 'missed'}.")


if __name__ == "__main__":
    main()
