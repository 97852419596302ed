"""Subscriptions: milliseconds from the moment an append returns to the moment a waiting subscription has the event.

    python benchmarks/subscriptions.py [--url postgresql+psycopg://…] [--folder FOLDER]

The clock of all processes of a machine is the same. An event is delivered before its append returns, perhaps, where
both are in one process: that counts as 0. Then, what a waiting subscription costs while nothing happens.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import UUID, uuid4

from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import make_url, text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, create_engine

APPENDS = 400
IDLE_SECONDS = 5.0


def deliver(url: str, count: int, report: Connection) -> None:
    """Reports when it is ready, and then the moments at which it got events."""
    with Database.open(url=url, maintain_projections=False) as database:
        after = database.events.last_sequence()
        report.send(after)
        moments = []
        with database.events.subscribe(after=after) as subscription:
            for _ in range(count):
                next(subscription)
                moments.append(time.monotonic())
        report.send(moments)


def latencies(url: str, *, other_process: bool, console: Console, what: str) -> list[float]:
    """Returns the milliseconds of each delivery, sorted."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    returned: list[float] = []
    with Database.open(url=url, maintain_projections=False) as database:
        arguments = (url, APPENDS, sender)
        consumer: threading.Thread | BaseProcess
        if other_process:
            consumer = multiprocessing.get_context("spawn").Process(target=deliver, args=arguments)
        else:
            consumer = threading.Thread(target=deliver, args=arguments)
        consumer.start()
        receiver.recv()
        time.sleep(0.3)
        for number in track(range(APPENDS), what, console=console, transient=True):
            time.sleep(0.005 + number % 7 / 1_000)  # in no step with whatever looks from time to time
            database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(number))])
            returned.append(time.monotonic())
        moments: list[float] = receiver.recv()
        consumer.join()
    return sorted(max(0.0, got - sent) * 1_000 for got, sent in zip(moments, returned, strict=True))


def idle_cost(url: str) -> float:
    """Returns the share of a processor, in percent, that a subscription takes that waits."""
    with Database.open(url=url, maintain_projections=False) as database:
        subscription = database.events.subscribe(after=database.events.last_sequence())
        waiting = threading.Thread(target=next, args=(subscription, None))
        waiting.start()
        time.sleep(0.5)
        start = time.process_time()
        time.sleep(IDLE_SECONDS)
        cost = (time.process_time() - start) / IDLE_SECONDS * 100
        subscription.close()
        waiting.join()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon subscriptions deliver.")
    parser.add_argument("--url", default="postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    console = Console()

    schema = f"benchmark_{uuid4().hex}"
    server = create_engine(arguments.url)
    with server.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    in_schema = make_url(arguments.url).update_query_dict({"options": f"-csearch_path={schema}"})
    try:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            file = f"sqlite:///{folder}/peon.db"
            postgresql = in_schema.render_as_string(hide_password=False)
            table = Table("", "50 %", "99 %", "while idle")
            for what, url, other_process in (
                ("SQLite file, same process", file, False),
                ("SQLite file, another process", file, True),
                ("PostgreSQL, same process", postgresql, False),
                ("PostgreSQL, another process", postgresql, True),
            ):
                found = latencies(url, other_process=other_process, console=console, what=what)
                half, nearly_all = found[len(found) // 2], found[len(found) * 99 // 100]
                table.add_row(what, f"{half:.1f} ms", f"{nearly_all:.1f} ms", f"{idle_cost(url):.2f} %")
        console.print(f"From append to delivery, {APPENDS} appends; processor time of a subscription that waits.")
        console.print(table)
    finally:
        with server.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        server.dispose()


if __name__ == "__main__":
    main()
