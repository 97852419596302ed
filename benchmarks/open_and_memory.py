"""How long a database takes to open, and what memory streaming takes, with ten events and with many.

    python benchmarks/open_and_memory.py [--events 1000000] [--folder FOLDER]

Opening is timed in a process of its own, after its imports; the best of several counts.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from workload import SAMPLE, session_events

from peon.persistence import Database

BATCH = 10_000
OPENINGS = 9

OPEN = """
import sys, time
from peon.config import AppConfig
from peon.persistence import Database
start = time.perf_counter()
database = Database.open(url=sys.argv[1])
print((time.perf_counter() - start) * 1000)
database.close()
"""

STREAM = """
import resource, sys
from peon.persistence import Database
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
with Database.open(url=sys.argv[1]) as database:
    before = highest = resident()
    for number, _ in enumerate(database.events.stream()):
        if number % 10_000 == 0:
            highest = max(highest, resident())
print((highest - before) / 1e6)
"""


def measure(script: str, url: str) -> float:
    result = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the databases are put")
    arguments = parser.parse_args()
    console = Console()
    events = session_events(SAMPLE, BATCH)
    table = Table("Events in the log", "open, ms", "memory added by stream(), MB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count in (10, arguments.events):
            url = f"sqlite:///{folder}/{count}.db"
            with Database.open(url=url) as database:
                for start in track(range(0, count, BATCH), "Filling", console=console, transient=True):
                    database.events.append_all(events[: min(BATCH, count - start)])
            opened = min(measure(OPEN, url) for _ in range(OPENINGS))
            table.add_row(f"{count:,}", f"{opened:.1f}", f"{measure(STREAM, url):.1f}")
    console.print("Targets: at most 15 ms to open, at most 30 MB to stream a million events.")
    console.print(table)


if __name__ == "__main__":
    main()
