"""What it costs on PostgreSQL to commit events in the order of their sequences, by the way it is done.

    python benchmarks/commit_order.py [--url postgresql+psycopg://…] [--session SESSION.jsonl] [--rounds 40]

Each way appends one event a commit with plain psycopg. `docs/` says which way peon takes, and why.
"""

import argparse
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import LiteralString

import psycopg
from postgresql import EVENTS_TABLE, INSERT, Row, rows_of
from postgresql_server import DEFAULT_URL, driver_url, new_schema
from rich.console import Console
from rich.progress import track
from sqlalchemy import URL, make_url
from tables import Table
from workload import SAMPLE, seconds, session_events

COMMITS = 50
"""Commits in a measurement: few enough that many measurements run undisturbed."""

WRITERS = 8
"""Connections that append at the same time, in the second measurement of each way."""

APPEND_LOCK = "CREATE TABLE append_lock (number BIGINT NOT NULL); INSERT INTO append_lock VALUES (1)"
HEAD = "CREATE TABLE head (sequence BIGINT NOT NULL); INSERT INTO head VALUES (0)"
TRANSACTIONS = "ALTER TABLE events ADD COLUMN transaction XID8 NOT NULL DEFAULT pg_current_xact_id()"
INSERT_RETURNING = f"{INSERT} RETURNING sequence"
INSERT_AFTER_HEAD = """
WITH moved AS (UPDATE head SET sequence = sequence + 1 RETURNING sequence)
INSERT INTO events (sequence, event_type, payload, stored_at) SELECT sequence, %s, %s, %s FROM moved RETURNING sequence
"""
INSERT_NUMBERED = "INSERT INTO events (sequence, event_type, payload, stored_at) VALUES (%s, %s, %s, %s)"
LOCK_TABLE = "BEGIN; LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE"
LOCK_ADVISORY = "BEGIN; SELECT pg_advisory_xact_lock(20220524)"
LOCK_ROW = "BEGIN; SELECT number FROM append_lock FOR UPDATE; SELECT coalesce(max(sequence), 0) FROM events"

PsycopgConnection = psycopg.Connection[tuple[int]]


@dataclass(frozen=True)
class Way:
    """A way to append one event in its own transaction.

    Attributes:
        round_trips: How often the client waits for the server. A single statement is its own transaction.
        ordered: Whether a reader that sees a sequence also sees all lower ones.
        gapless: Whether a transaction that fails leaves no gap in the sequences.
        prepare: A statement that changes the tables for this way.
    """

    name: str
    round_trips: int
    ordered: bool
    gapless: bool
    append: Callable[[PsycopgConnection, Row], object]
    prepare: LiteralString = ""


@dataclass(frozen=True)
class OrderCost:
    """A way and its rate: commits a second of one writer, and of `WRITERS` together."""

    name: str
    round_trips: int
    ordered: bool
    gapless: bool
    one_writer: float
    all_writers: float


def insert_in_transaction(connection: PsycopgConnection, row: Row, begin: str, insert: str) -> None:
    connection.execute(begin)
    connection.execute(insert, row).fetchall()
    connection.execute("COMMIT")


def insert_in_autocommit(connection: PsycopgConnection, row: Row, insert: str) -> None:
    connection.execute(insert, row).fetchall()


def insert_after_highest(connection: PsycopgConnection, row: Row) -> None:
    cursor = connection.execute(LOCK_ROW)
    cursor.nextset()
    cursor.nextset()
    ((last,),) = cursor.fetchall()
    connection.execute(INSERT_NUMBERED, (last + 1, *row))
    connection.execute("COMMIT")


UNORDERED = "no lock"
WAYS = [
    Way(UNORDERED, 3, False, False, partial(insert_in_transaction, begin="BEGIN", insert=INSERT_RETURNING)),
    Way("`LOCK TABLE`", 3, True, False, partial(insert_in_transaction, begin=LOCK_TABLE, insert=INSERT_RETURNING)),
    Way("advisory lock", 3, True, False, partial(insert_in_transaction, begin=LOCK_ADVISORY, insert=INSERT_RETURNING)),
    Way(
        "snapshot horizon",
        3,
        False,
        False,
        partial(insert_in_transaction, begin="BEGIN", insert=INSERT_RETURNING),
        TRANSACTIONS,
    ),
    Way("head row", 3, True, True, partial(insert_in_transaction, begin="BEGIN", insert=INSERT_AFTER_HEAD)),
    Way("row `FOR UPDATE`, `max`", 3, True, True, insert_after_highest),
    Way("no lock, autocommit", 1, False, False, partial(insert_in_autocommit, insert=INSERT_RETURNING)),
    Way("head row, autocommit", 1, True, True, partial(insert_in_autocommit, insert=INSERT_AFTER_HEAD)),
]


def measure(server: URL, rounds: int, console: Console, *, session: Path = SAMPLE) -> list[OrderCost]:
    rows = rows_of(session_events(session, COMMITS), datetime.now(UTC))
    ways = WAYS.copy()
    best: dict[tuple[str, int], float] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(WRITERS))
        connections: dict[str, list[PsycopgConnection]] = {}
        for way in WAYS:
            url = driver_url(stack.enter_context(new_schema(server)))
            connections[way.name] = [stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(WRITERS)]
            for statements in filter(None, (EVENTS_TABLE, APPEND_LOCK, HEAD, way.prepare)):
                connections[way.name][0].execute(statements)

        def append(way: Way, connection: PsycopgConnection) -> None:
            for row in rows:
                way.append(connection, row)

        def append_together(way: Way, connections: list[PsycopgConnection]) -> None:
            deque(pool.map(partial(append, way), connections), maxlen=0)

        for _ in track(range(rounds), "Commit order", console=console, transient=True):
            random.shuffle(ways)  # which way came before makes up to 10 % of a measurement
            for way, writers in product(ways, (1, WRITERS)):
                work = partial(append_together, way, connections[way.name][:writers])
                rate = writers * len(rows) / seconds(work)
                best[way.name, writers] = max(best.get((way.name, writers), 0.0), rate)
    return [
        OrderCost(way.name, way.round_trips, way.ordered, way.gapless, best[way.name, 1], best[way.name, WRITERS])
        for way in WAYS
    ]


def table(results: list[OrderCost]) -> Table:
    base = next(result for result in results if result.name == UNORDERED)
    rows = [
        (
            result.name,
            str(result.round_trips),
            "yes" if result.ordered else "no",
            "yes" if result.gapless else "no",
            f"{result.one_writer:,.0f}",
            f"{result.one_writer / base.one_writer:.2f}",
            f"{result.all_writers:,.0f}",
            f"{result.all_writers / base.all_writers:.2f}",
        )
        for result in results
    ]
    columns = (
        "commits a second",
        "round trips",
        "ordered",
        "gapless",
        "1 writer",
        "ratio",
        f"{WRITERS} writers",
        "ratio",
    )
    return Table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", type=make_url, default=DEFAULT_URL, help="a database in which schemas may be created")
    parser.add_argument("--session", type=Path, default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    console = Console()
    console.print(table(measure(arguments.url, arguments.rounds, console, session=arguments.session)).for_terminal())


if __name__ == "__main__":
    main()
