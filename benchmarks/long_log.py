"""A log of ten million events beside shorter ones: how each piece of work grows with the log.

    python benchmarks/long_log.py [--events 10000000] [--folder FOLDER]
    python benchmarks/long_log.py --from benchmarks/long_log.json [--check]

Writes the page and the results as JSON. It needs three times the space of the database in the folder, about 15 GB for
ten million events, and takes about half an hour. With `--from`, nothing is measured and the page is written again;
with `--check`, nothing is written, and the exit status is 1 if the page does not belong to these results.

Each piece of work has a process of its own, see long_log_process.py.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from string import Template
from textwrap import fill
from typing import Any

from environment import Environment, read_environment
from long_log_process import BACKUP, DATABASE, EXPORT, READS, WORKS
from open_and_memory import OPEN_TARGET_MS, STREAM_TARGET_MB
from pydantic import TypeAdapter
from reads import PAGE_TARGET_MS, Read
from rich.console import Console
from tables import Table, target_text

ROOT = Path(__file__).parents[1]
PROCESS = Path(__file__).with_name("long_log_process.py")
TEMPLATE = Path(__file__).with_name("long_log_template.md")
RESULTS = ROOT / "benchmarks" / "long_log.json"
PAGE = ROOT / "docs" / "reference" / "ten-million-events.md"

EVENTS = 10_000_000
LENGTHS = (100, 10, 1)
"""Each log is so many times shorter than the longest one, and is measured before it."""

LEAST_EVENTS = 10_000_000
"""In shorter logs, the threads beside the sessions would be more than a third of the shortest one."""

NOT_MEASURED = "—"

OPENINGS = 30

LINEAR = 1.2
"""Processor time an event, relative to a log ten times shorter, up to which work is called linear: it differs by up
to a fifth between two runs on a machine that does other work."""

NAMES = {
    "fill": "append, 1,000 a commit, without projections",
    "catch_up": "`catch_up` of all events",
    "stream": "`stream`",
    "rebuild": "`rebuild`",
    "verify": "`verify`",
    "export": "`export_log`",
    "back_up": "`back_up_database`",
    "compact": "`compact`",
    "vacuum": "`vacuum(full=True)` after it",
    "verify_compacted": "`verify` after it",
}


@dataclass(frozen=True)
class Step:
    """A piece of work on the whole log."""

    seconds: float
    processor_seconds: float
    added_mb: float


@dataclass(frozen=True)
class TimedRead:
    """A read that was repeated."""

    name: str
    shortest_ms: float
    median_ms: float


@dataclass
class LongLog:
    """What was measured with a log of one length; `megabytes` are those of files, by name."""

    events: int
    steps: dict[str, Step] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    opened: TimedRead | None = None
    status: list[TimedRead] = field(default_factory=list)
    reads: list[TimedRead] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """All that was measured; `note` is a paragraph about the run, written by hand."""

    environment: Environment
    logs: list[LongLog]
    note: str = ""


RESULTS_ADAPTER = TypeAdapter(Results)


def in_process(name: str, folder: Path, events: int) -> Any:
    command = [sys.executable, str(PROCESS), name, str(folder), str(events)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(folder: Path, events: int, console: Console, save: Callable[[LongLog], None]) -> LongLog:
    """Measures all with a new log of so many events; calls `save` after each part, because a run takes long."""
    log = LongLog(events)
    database = folder / DATABASE

    def part(name: str) -> Any:
        with console.status(f"{name} with {events:,} events"):
            found = in_process(name, folder, events)
        console.print(f"{events:,}: {name}: {found}", highlight=False)
        return found

    log.steps["fill"] = Step(**part("fill"))
    log.megabytes["log alone"] = megabytes(database)
    for name in WORKS:
        log.steps[name] = Step(**part(name))
        if name == "catch_up":
            log.megabytes["log and projections"] = megabytes(database)
            log.opened = opening([part("open") for _ in range(OPENINGS)])
            log.status = [TimedRead(**each) for each in part("status")]
            log.reads = [TimedRead(**each) for each in part("read")]
        elif name == "export":
            log.megabytes["export"] = megabytes(folder / EXPORT)
            (folder / EXPORT).unlink()
        elif name == "back_up":
            log.megabytes["backup"] = megabytes(folder / BACKUP)
            (folder / BACKUP).unlink()
        elif name == "vacuum":
            log.megabytes["the same, compacted"] = megabytes(database)
        save(log)
    return log


def opening(milliseconds: list[float]) -> TimedRead:
    return TimedRead("`Database.open()`", min(milliseconds), median(milliseconds))


def megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def microseconds(log: LongLog, name: str) -> float | None:
    """Returns the processor time an event."""
    return log.steps[name].processor_seconds / log.events * 1e6 if name in log.steps else None


def growth(logs: list[LongLog], name: str) -> str:
    """Compares the processor time an event in the longest log that was measured with a log ten times shorter."""
    measured = [time for time in (microseconds(log, name) for log in logs) if time is not None]
    if len(measured) < 2:
        return NOT_MEASURED
    ratio = measured[-1] / measured[-2]
    return f"{ratio:.2f}, {'linear' if ratio <= LINEAR else 'more than linear'}"


def steps_table(logs: list[LongLog]) -> Table:
    rows = []
    for name in logs[0].steps:
        spent = [figure(log.steps[name].seconds if name in log.steps else None, ".1f") for log in logs]
        rows.append(
            (NAMES[name], *spent, *(figure(microseconds(log, name), ".1f") for log in logs), growth(logs, name))
        )
    columns = [f"{what}, {log.events:,}" for what in ("seconds", "µs an event") for log in logs]
    return Table(("work", *columns, "growth"), rows)


def memory_table(logs: list[LongLog]) -> Table:
    rows = []
    for name in logs[0].steps:
        added = [log.steps[name].added_mb if name in log.steps else None for log in logs]
        reached = all(each is None or each <= STREAM_TARGET_MB for each in added)
        target = target_text(STREAM_TARGET_MB if name == "stream" else None, reached, "≤", " MB")
        rows.append((NAMES[name], *(figure(each, ".0f") for each in added), target))
    return Table(("work, MB", *headings(logs), "target"), rows)


def sizes_table(logs: list[LongLog]) -> Table:
    rows = []
    for name in logs[0].megabytes:
        sizes = [log.megabytes.get(name) for log in logs]
        an_event = [size and size * 1e6 / log.events for size, log in zip(sizes, logs, strict=True)]
        rows.append((name, *(figure(size, ",.0f") for size in sizes), *(figure(each, ".0f") for each in an_event)))
    columns = [f"{what}, {log.events:,}" for what in ("MB", "bytes an event") for log in logs]
    return Table(("file", *columns), rows)


def reads_table(logs: list[LongLog]) -> Table:
    opened = [[log.opened] if log.opened else [] for log in logs]
    parts = (
        (opened, OPEN_TARGET_MS),
        ([log.status for log in logs], None),
        ([log.reads for log in logs], PAGE_TARGET_MS),
    )
    rows = []
    for reads, limit in parts:
        for number, first in enumerate(reads[0]):
            same = [each[number] if each else None for each in reads]
            shortest = [each.shortest_ms if each else None for each in same]
            middle = [each.median_ms if each else None for each in same]
            reached = all(Read("", each.shortest_ms, limit).reached for each in same if each)
            target = target_text(limit, reached, "≤", " ms")
            rows.append((first.name, *(figure(each, ".2f") for each in (*shortest, *middle)), target))
    columns = [f"{what}, {log.events:,}" for what in ("shortest, ms", "median, ms") for log in logs]
    return Table(("read", *columns, "target"), rows)


def figure(number: float | None, form: str) -> str:
    return NOT_MEASURED if number is None else format(number, form)


def missing(logs: list[LongLog]) -> str:
    """Returns a paragraph that says what was not measured with the longest log, or nothing."""
    names = [NAMES[name] for name in NAMES if name not in logs[-1].steps]
    names += [] if logs[-1].reads else ["opening and pages"]
    if not names:
        return ""
    return f"**The run was ended early. Not measured with {logs[-1].events:,} events: {', '.join(names)}.**"


def headings(logs: list[LongLog]) -> list[str]:
    return [f"{log.events:,} events" for log in logs]


def page_text(results: Results) -> str:
    logs = results.logs
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        environment=results.environment.table().to_markdown(),
        events=f"{logs[-1].events:,}",
        fewer=" and ".join(f"{log.events:,}" for log in logs[:-1]),
        notes="".join(f"\n{fill(note, 120)}\n" for note in (missing(logs), results.note) if note),
        reads=str(READS),
        linear=f"{LINEAR:g}",
        sizes=sizes_table(logs).to_markdown(),
        times=reads_table(logs).to_markdown(),
        steps=steps_table(logs).to_markdown(),
        memory=memory_table(logs).to_markdown(),
    )


def run(arguments: argparse.Namespace, console: Console) -> Results:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        results = Results(read_environment(folder, None, ""), [])
        for events in (arguments.events // times for times in LENGTHS):
            place = folder / str(events)
            place.mkdir()

            def save(log: LongLog) -> None:
                so_far = Results(results.environment, [*results.logs, log])
                arguments.results.write_bytes(RESULTS_ADAPTER.dump_json(so_far, indent=2) + b"\n")

            results.logs.append(measure(place, events, console, save))
            shutil.rmtree(place)
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--folder", type=Path, help="where the database is created")
    parser.add_argument("--from", dest="saved", type=Path, metavar="RESULTS", help="use saved results, run nothing")
    parser.add_argument("--check", action="store_true", help="with --from: write nothing, compare the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are saved")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if arguments.check and not arguments.saved:
        parser.error("--check needs --from")
    if arguments.events < LEAST_EVENTS:
        parser.error(f"--events must be at least {LEAST_EVENTS:,}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    if arguments.saved:
        results = RESULTS_ADAPTER.validate_json(arguments.saved.read_bytes())
    else:
        results = run(arguments, console)
    text = page_text(results)
    if arguments.check:
        if not arguments.page.exists() or arguments.page.read_text(encoding="utf-8") != text:
            sys.exit(f"{arguments.page.name} does not belong to {arguments.saved.name}: run long_log.py --from.")
        return
    arguments.page.write_text(text, encoding="utf-8")
    for table in (sizes_table, reads_table, steps_table, memory_table):
        console.print(table(results.logs).for_terminal())


if __name__ == "__main__":
    main()
