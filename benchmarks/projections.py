"""Projections: appends with them against plain `sqlite3` without any, catch-up and rebuild against `stream`.

    python benchmarks/projections.py [--session SESSION.jsonl] [--chunk 8] [--rounds 20] [--folder FOLDER]

The best of several interleaved rounds of one run counts, as in append_and_replay.py.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from workload import SAMPLE, STREAMED, PlainStore, consume, each, seconds, session_events

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database

TARGETS = {1: 0.35, 10: 0.45}
COMMITS = {1: 200, 10: 60}
REPLAYED = 100_000
REPLAYS = 3


def measure_appends(folder: Path, events: list[OrchestrationEvent], rounds: int, console: Console) -> Table:
    best: dict[tuple[int, str], float] = {}
    table = Table("", "plain sqlite3", "with projections", "ratio", "target", title="Append, events a second")
    stores = {
        size: (PlainStore(folder / f"plain-{size}.db"), Database.open(url=f"sqlite:///{folder}/peon-{size}.db"))
        for size in TARGETS
    }
    for turn in track(range(rounds), "Appending", console=console, transient=True):
        for size, (plain, database) in stores.items():
            length = size * COMMITS[size]
            batches = [events[at : at + size] for at in range(turn * length, (turn + 1) * length, size)]
            for who, append in (("plain", plain.append_all), ("peon", database.events.append_all)):
                rate = length / seconds(partial(each, append, batches))
                best[size, who] = max(best.get((size, who), 0.0), rate)
    for size, (plain, database) in stores.items():
        plain.close()
        database.close()
        ours, theirs = best[size, "peon"], best[size, "plain"]
        table.add_row(f"{size} a commit", f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}", f"{TARGETS[size]}")
    return table


def measure_replays(folder: Path, events: list[OrchestrationEvent], console: Console) -> Table:
    log = folder / "log.db"
    with Database.open(url=f"sqlite:///{log}", maintain_projections=False) as database:
        for start in range(0, len(events), 1_000):
            database.events.append_all(events[start : start + 1_000])
    best: dict[str, float] = {}
    for turn in track(range(REPLAYS), "Replaying", console=console, transient=True):
        copy = folder / f"{turn}.db"
        shutil.copy(log, copy)
        with Database.open(url=f"sqlite:///{copy}", maintain_projections=False) as database:
            works: dict[str, Callable[[], object]] = {
                "stream": partial(consume, database.events.stream),
                "catch_up": database.projections.catch_up,
                "rebuild": database.projections.rebuild,
                "verify": database.projections.verify,
            }
            for what, work in works.items():
                best[what] = max(best.get(what, 0.0), len(events) / seconds(work))
    table = Table("", "events a second", "ratio to stream", "target", title=f"A log of {len(events):,} events")
    for what, rate in best.items():
        target = "0.3" if what in ("catch_up", "rebuild") else ""
        table.add_row(what, f"{rate:,.0f}", f"{rate / best['stream']:.2f}", target)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", type=Path, default=SAMPLE)
    parser.add_argument("--chunk", type=int, default=STREAMED, help="characters of streamed text in a chunk")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the databases are put; decides what a commit costs")
    arguments = parser.parse_args()
    console = Console()
    length = max(size * COMMITS[size] for size in COMMITS) * arguments.rounds
    events = session_events(arguments.session, max(length, REPLAYED), arguments.chunk)
    chunks = sum(event.type == "MessageChunkReceived" for event in events) / len(events)
    console.print(f"{arguments.session.name}: {chunks:.0%} of the events are chunks of {arguments.chunk} characters.")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        console.print(measure_appends(Path(folder), events, arguments.rounds, console))
        console.print(measure_replays(Path(folder), events[:REPLAYED], console))


if __name__ == "__main__":
    main()
