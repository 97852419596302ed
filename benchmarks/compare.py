"""Compares the speed of two checkouts on this machine, in alternating measurements: A B A B …

    python benchmarks/compare.py CHECKOUT_A CHECKOUT_B [--rounds 10] [--processes 3] [--url postgresql+psycopg://…]

Each checkout runs in its own process, with its `src` first on the path, and keeps its databases open from one
measurement to the next. New processes start several times, because the layout of a process in memory alone makes some
percent. Ratios are of speed: above 1, B is faster than A.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

from postgresql_server import add_server_arguments, server_version
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import URL
from tables import Table

WORKER = Path(__file__).with_name("compare_worker.py")
TOLERANCE = 0.03
"""A row is marked if both the best and the median of B are slower by more than this."""

IMPORT = "import peon"
IMPORT_PROGRAM = """
import sys, time
start = time.perf_counter()
{statement}
sys.stdout.write(str((time.perf_counter() - start) * 1000))
"""
IMPORT_STATEMENTS = ("from peon import Database", "from peon.persistence import Database")
"""Old checkouts know only the second one."""


@dataclass
class Figure:
    """All measurements of one figure, by side: events a second, or milliseconds."""

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def best(self, side: str) -> float:
        values = self.values[side]
        return min(values) if self.unit == "ms" else max(values)

    def median(self, side: str) -> float:
        return median(self.values[side])

    def ratio(self, a: float, b: float) -> float:
        """Returns how much faster B is than A."""
        return a / b if self.unit == "ms" else b / a


class Worker:
    """The process of one checkout."""

    def __init__(self, checkout: Path, folder: Path, server: URL | None, hash_seed: int) -> None:
        command = [sys.executable, str(WORKER), str(folder)]
        if server is not None:
            command.append(server.render_as_string(hide_password=False))
        self._process = subprocess.Popen(
            command,
            env=environment(checkout, hash_seed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._input = cast("IO[str]", self._process.stdin)
        self._output = cast("IO[str]", self._process.stdout)
        hello = self._answer()
        self.package = Path(hello["package"])
        self.figures: dict[str, tuple[str, bool]] = hello["figures"]

    def prepare(self, name: str) -> None:
        self._ask(f"prepare {name}")

    def measure(self, name: str) -> float:
        return float(self._ask(f"measure {name}"))

    def close(self) -> None:
        """Lets the process drop its schemas and remove its databases."""
        with suppress(BrokenPipeError):  # of a process that has ended by itself
            self._input.close()
        self._process.wait()

    def _ask(self, command: str) -> Any:
        with suppress(BrokenPipeError):  # `_answer` notices it as well
            self._input.write(f"{command}\n")
            self._input.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._output.readline()
        if not line:
            raise SystemExit("A worker ended; its error is above.")
        return json.loads(line)


def environment(checkout: Path, hash_seed: int) -> dict[str, str]:
    """Returns the environment of a process that imports the package of this checkout.

    Args:
        hash_seed: The same for both sides, as the order of hash tables changes speeds.
    """
    return {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONHASHSEED": str(hash_seed)}


@contextmanager
def workers(
    checkouts: dict[str, Path], server: URL | None, folder: Path, hash_seed: int
) -> Iterator[dict[str, Worker]]:
    started: dict[str, Worker] = {}
    try:
        for side, checkout in checkouts.items():
            worker = started[side] = Worker(checkout, folder, server, hash_seed)
            if not worker.package.is_relative_to(checkout):
                raise SystemExit(f"{checkout} has no package peon in its src folder.")
        yield started
    finally:
        for worker in started.values():
            worker.close()


def import_statement(checkout: Path) -> str:
    for statement in IMPORT_STATEMENTS:
        command = [sys.executable, "-c", statement]
        if not subprocess.run(command, env=environment(checkout, 0), stderr=subprocess.DEVNULL, check=False).returncode:
            return statement
    raise SystemExit(f"{checkout} has no package peon that can be imported.")


def import_ms(checkout: Path, statement: str, hash_seed: int) -> float:
    command = [sys.executable, "-c", IMPORT_PROGRAM.format(statement=statement)]
    run = subprocess.run(command, env=environment(checkout, hash_seed), stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout)


def compare(arguments: argparse.Namespace, folder: Path, console: Console) -> list[Figure]:
    """Returns the figures in the order of the worker's list."""
    checkouts = {"A": arguments.a.resolve(), "B": arguments.b.resolve()}
    server: URL | None = arguments.url if arguments.postgresql else None
    figures: dict[str, Figure] = {}
    with Progress(console=console, transient=True) as progress:
        for process in range(arguments.processes):
            with workers(checkouts, server, folder, hash_seed=process) as sides:
                names = [
                    name
                    for name, (unit, needs_server) in sides["B"].figures.items()
                    if (server is not None or not needs_server) and chosen(name, arguments.only)
                ]
                title = f"Processes {process + 1} of {arguments.processes}"
                for name in progress.track(names, description=title):
                    figure = figures.setdefault(name, Figure(name, sides["B"].figures[name][0]))
                    for worker in sides.values():
                        worker.prepare(name)
                    for _ in range(arguments.rounds):
                        for side, worker in sides.items():
                            figure.values[side].append(worker.measure(name))
        if chosen(IMPORT, arguments.only):
            figure = figures[IMPORT] = Figure(IMPORT, "ms")
            statements = {side: import_statement(checkout) for side, checkout in checkouts.items()}
            for number in progress.track(range(arguments.processes * arguments.rounds), description=IMPORT):
                for side, checkout in checkouts.items():
                    figure.values[side].append(import_ms(checkout, statements[side], hash_seed=number))
    return list(figures.values())


def chosen(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def table(figures: Sequence[Figure]) -> Table:
    rows = []
    for figure in figures:
        digits = 2 if figure.unit == "ms" else 0
        cells = [figure.name, figure.unit]
        ratios = []
        for summary in (figure.best, figure.median):
            a, b = summary("A"), summary("B")
            ratios.append(figure.ratio(a, b))
            cells += [f"{a:,.{digits}f}", f"{b:,.{digits}f}", f"{ratios[-1]:.3f}"]
        cells.append("yes" if max(ratios) < 1 - TOLERANCE else "")
        rows.append(tuple(cells))
    columns = ("figure", "unit", "A best", "B best", "B/A", "A median", "B median", "B/A", f"slower by {TOLERANCE:.0%}")
    return Table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("a", type=Path, metavar="CHECKOUT_A", help="the older checkout, as a folder")
    parser.add_argument("b", type=Path, metavar="CHECKOUT_B", help="the newer checkout")
    add_server_arguments(parser)
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each figure and side in a process")
    parser.add_argument("--processes", type=int, default=3, help="how many times both processes start")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="figures whose name contains TEXT")
    parser.add_argument("--folder", type=Path, help="where the databases are created; decides what a commit costs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all measurements")
    arguments = parser.parse_args()
    console = Console()
    if arguments.postgresql:
        server_version(arguments.url)  # fails now rather than after minutes
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = compare(arguments, Path(folder), console)
    if arguments.json:
        saved = {figure.name: {"unit": figure.unit, **figure.values} for figure in figures}
        arguments.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    console.print(
        f"A: {arguments.a.resolve().name}, B: {arguments.b.resolve().name}; {arguments.processes} processes with"
        f" {arguments.rounds} measurements each. A ratio above 1 means that B is faster."
    )
    if arguments.markdown:
        sys.stdout.write(table(figures).to_markdown() + "\n")
    else:
        console.print(table(figures).for_terminal())


if __name__ == "__main__":
    main()
