"""Runs all benchmarks and writes the benchmark page, its charts, and the results as JSON.

    python benchmarks/report.py [--full] [--rounds 30] [--url postgresql+psycopg://…] [--folder FOLDER]
    python benchmarks/report.py --from benchmarks/results.json [--check]

With `--from`, nothing is measured: the page and the charts are written again from saved results. With `--check`,
nothing is written either; the exit status is 1 if the page does not belong to these results.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import append_and_replay
import commit_order
import copying
import open_and_memory
import postgresql
import projections
import psycopg
import reads
import subscriptions
from comparison import Comparison
from environment import read_environment
from page import Results, page_text, write_charts
from postgresql_server import add_server_arguments, durability, server_version
from pydantic import TypeAdapter
from rich.console import Console
from sqlalchemy import URL
from workload import (
    RECORDED_CHUNK_CHARACTERS,
    SAMPLE,
    STREAMED_CHUNK_CHARACTERS,
    payload_characters,
    session_events,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "reference" / "benchmarks.md"

ROUNDS = 30
LONG_LOG_EVENTS = 100_000
"""Events of the long log without `--full`."""

QUICK_ROUNDS = 2
QUICK_EVENTS = 5_000
QUICK_APPENDS = 40
QUICK_IDLE_SECONDS = 1.0

RESULTS_ADAPTER = TypeAdapter(Results)


def run(arguments: argparse.Namespace, console: Console) -> Results:
    """Runs all parts one after the other, each with a folder of its own for its SQLite databases."""
    server: URL | None = arguments.url if arguments.postgresql else None
    quick: bool = arguments.quick
    rounds: int = QUICK_ROUNDS if quick else arguments.rounds

    @contextmanager
    def part(name: str) -> Iterator[Path]:
        console.print(f"{name} …")
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            yield Path(folder)

    with part("Machine and versions") as folder:
        # First of all: a server that cannot be reached must not end a run of many minutes.
        environment = read_environment(
            folder, server_version(server) if server else None, durability(server) if server else ""
        )
    orders: list[commit_order.OrderCost] = []
    log_on_postgresql: list[Comparison] = []
    copies: list[copying.Copy] = []

    if server is not None:
        with part("Commit order"):
            orders = commit_order.measure(server, rounds, console)
    events = session_events(SAMPLE, QUICK_EVENTS if quick else append_and_replay.REPLAYED_EVENTS)
    with part("Log on SQLite") as folder:
        log = append_and_replay.measure(folder, events, rounds, console)
    if server is not None:
        with part("Log on PostgreSQL"):
            log_on_postgresql = postgresql.measure(server, events, rounds, console)
    payload = payload_characters(events)
    del events  # the garbage collector would go through them in the parts that follow

    sessions = []
    for chunk_characters in (STREAMED_CHUNK_CHARACTERS, RECORDED_CHUNK_CHARACTERS):
        with part(f"Projections, chunks of {chunk_characters} characters") as folder:
            sessions.append(
                projections.measure(
                    folder,
                    rounds,
                    console,
                    chunk_characters=chunk_characters,
                    replayed_events=QUICK_EVENTS if quick else projections.REPLAYED_EVENTS,
                )
            )
    with part("Reads") as folder:
        pages_and_snapshots = reads.measure(folder, console)
    with part("Subscriptions") as folder:
        deliveries = subscriptions.measure(
            folder,
            server,
            console,
            appends=QUICK_APPENDS if quick else subscriptions.APPENDS,
            idle_seconds=QUICK_IDLE_SECONDS if quick else subscriptions.IDLE_SECONDS,
        )
    with part("Opening and memory") as folder:
        many = open_and_memory.MANY_EVENTS if arguments.full else LONG_LOG_EVENTS
        long_logs = open_and_memory.measure(folder, console, many_events=QUICK_EVENTS if quick else many)
    if server is not None:
        with part("Copies") as folder:
            copies = copying.measure(folder, server, console, events=QUICK_EVENTS if quick else copying.EVENTS)
    return Results(
        environment=environment,
        rounds=rounds,
        trial=quick,
        payload_characters=payload,
        log=log,
        postgresql=log_on_postgresql,
        commit_order=orders,
        projections=sessions,
        reads=pages_and_snapshots,
        subscriptions=deliveries,
        long_logs=long_logs,
        copies=copies,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_server_arguments(parser)
    parser.add_argument("--folder", type=Path, help="where the SQLite databases are created")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the parts that have a baseline")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="with a log of a million events; takes minutes longer")
    size.add_argument("--quick", action="store_true", help="try the report itself: too few rounds for good figures")
    parser.add_argument("--from", dest="saved", type=Path, metavar="RESULTS", help="use saved results, run nothing")
    parser.add_argument("--check", action="store_true", help="with --from: write nothing, compare the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are saved")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; its charts are put into a folder beside it")
    arguments = parser.parse_args()
    if arguments.check and not arguments.saved:
        parser.error("--check needs --from")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    page: Path = arguments.page
    charts = page.with_suffix("")
    if arguments.saved:
        results = RESULTS_ADAPTER.validate_json(arguments.saved.read_bytes())
    else:
        try:
            results = run(arguments, console)
        except psycopg.OperationalError as error:
            sys.exit(f"PostgreSQL cannot be used: {error}\nGive another --url, or leave it out with --no-postgresql.")
        arguments.results.write_bytes(RESULTS_ADAPTER.dump_json(results, indent=2) + b"\n")
    text = page_text(results, charts.name)
    if arguments.check:
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"{page.name} does not belong to {arguments.saved.name}; run report.py --from without --check.")
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    write_charts(results, charts)
    console.print(f"Wrote {page.name} and its charts.")


if __name__ == "__main__":
    main()
