"""One measurement of open_and_memory.py, in a new process; writes milliseconds or megabytes to standard output.

python benchmarks/open_and_memory_process.py open|stream|catch_up|rebuild|verify URL
"""

import resource
import sys
import time
from pathlib import Path

from peon import Database

WORKS = ("stream", "catch_up", "rebuild", "verify")
LOOK_EVENTS = 10_000
"""Events between two looks at the memory, where nothing reports progress."""


def open_ms(url: str) -> float:
    start = time.perf_counter()
    database = Database.open(url=url)
    duration = time.perf_counter() - start
    database.close()
    return duration * 1_000


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def added_mb(work: str, url: str) -> float:
    """Returns how far the resident memory rises above what it was when the database was open."""
    with Database.open(url=url, maintain_projections=False) as database:
        before = highest = resident_bytes()

        def look(_done: int, _total: int) -> None:
            nonlocal highest
            highest = max(highest, resident_bytes())

        if work == "stream":
            for number, _ in enumerate(database.events.stream()):
                if number % LOOK_EVENTS == 0:
                    look(number, 0)
        else:
            getattr(database.projections, work)(look)
    return (highest - before) / 1e6


def main() -> None:
    work, url = sys.argv[1:]
    sys.stdout.write(str(open_ms(url) if work == "open" else added_mb(work, url)))


if __name__ == "__main__":
    main()
