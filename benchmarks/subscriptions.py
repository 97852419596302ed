"""Subscriptions: milliseconds from the return of an append to its delivery, and what a waiting subscription costs.

    python benchmarks/subscriptions.py [--url postgresql+psycopg://…] [--no-postgresql] [--folder FOLDER]

All processes of a machine read the same monotonic clock. Where both sides are in one process, the event may be
delivered before the append returns; that counts as 0 ms.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import UUID

from postgresql_server import add_server_arguments, new_schema
from rich.console import Console
from rich.progress import track
from sqlalchemy import URL, make_url
from tables import Table

from peon import Database
from peon.orchestration import ProjectRenamed

APPENDS = 400
IDLE_SECONDS = 5.0
START_SECONDS = 0.3
"""Until a subscription waits, after the last stored event was delivered."""

PAUSE_SECONDS = 0.005
"""Between two appends; up to 6 ms are added, so that appends do not keep step with a watcher that polls."""


@dataclass(frozen=True)
class Delivery:
    """Delays from append to delivery, and the share of one core that a subscription takes while it waits."""

    name: str
    median_ms: float
    percentile_99_ms: float
    idle_share: float


def deliver(url: URL, count: int, report: Connection) -> None:
    """Sends a first message when it is ready, and then the moments at which it received the events."""
    with Database.open(url=url, maintain_projections=False) as database:
        after = database.events.last_sequence()
        report.send(after)
        moments = []
        with database.events.subscribe(after=after) as subscription:
            for _ in range(count):
                next(subscription)
                moments.append(time.monotonic())
        report.send(moments)


def delays_ms(url: URL, appends: int, *, other_process: bool, name: str, console: Console) -> list[float]:
    """Returns the delay of each delivery, the shortest first."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    returned: list[float] = []
    with Database.open(url=url, maintain_projections=False) as database:
        arguments = (url, appends, sender)
        consumer: threading.Thread | BaseProcess
        if other_process:
            consumer = multiprocessing.get_context("spawn").Process(target=deliver, args=arguments)
        else:
            consumer = threading.Thread(target=deliver, args=arguments)
        consumer.start()
        receiver.recv()
        time.sleep(START_SECONDS)
        for number in track(range(appends), name, console=console, transient=True):
            time.sleep(PAUSE_SECONDS + number % 7 / 1_000)
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(number))])
            returned.append(time.monotonic())
        received: list[float] = receiver.recv()
        consumer.join()
    return sorted(max(0.0, got - sent) * 1_000 for got, sent in zip(received, returned, strict=True))


def idle_share(url: URL, idle_seconds: float) -> float:
    """Returns the share of one core that this process takes while one subscription waits."""
    with Database.open(url=url, maintain_projections=False) as database:
        subscription = database.events.subscribe(after=database.events.last_sequence())
        waiting = threading.Thread(target=next, args=(subscription, None))
        waiting.start()
        time.sleep(START_SECONDS)
        start = time.process_time()
        time.sleep(idle_seconds)
        cost = (time.process_time() - start) / idle_seconds
        subscription.close()
        waiting.join()
    return cost


def measure(
    folder: Path,
    server: URL | None,
    console: Console,
    *,
    appends: int = APPENDS,
    idle_seconds: float = IDLE_SECONDS,
) -> list[Delivery]:
    """Measures SQLite, and PostgreSQL where there is a server."""
    results = []
    with ExitStack() as stack:
        backends = {"SQLite file": make_url(f"sqlite:///{folder}/subscriptions.db")}
        if server is not None:
            backends["PostgreSQL"] = stack.enter_context(new_schema(server))
        for backend, url in backends.items():
            idle = idle_share(url, idle_seconds)
            for where, other_process in (("same process", False), ("another process", True)):
                name = f"{backend}, {where}"
                found = delays_ms(url, appends, other_process=other_process, name=name, console=console)
                results.append(Delivery(name, found[len(found) // 2], found[len(found) * 99 // 100], idle))
    return results


def table(results: list[Delivery]) -> Table:
    rows = [
        (
            result.name,
            f"{result.median_ms:.1f} ms",
            f"{result.percentile_99_ms:.1f} ms",
            f"{result.idle_share:.1%}",
        )
        for result in results
    ]
    return Table(("append to delivery", "median", "99th percentile", "core while idle"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_server_arguments(parser)
    parser.add_argument("--folder", type=Path, help="where the SQLite database is created")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments.url if arguments.postgresql else None, console)
    console.print(table(results).for_terminal())


if __name__ == "__main__":
    main()
