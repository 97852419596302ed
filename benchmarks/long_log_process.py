"""One piece of work of long_log.py, in a new process; writes what it measured to standard output, as JSON.

python benchmarks/long_log_process.py fill|open|status|read|… FOLDER EVENTS
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import NamedTuple
from uuid import UUID

from open_and_memory_process import open_ms
from workload import endless_session, long_thread, many_threads

from peon import Database, back_up_database, export_log
from peon.cli.status_measurements import measured
from peon.orchestration import OrchestrationEvent, TurnCompleted, TurnStarted

FILL_BATCH_EVENTS = 1_000
LONG_THREAD = UUID("7e57ab1e-0000-4000-8000-000000000001")
LONG_THREAD_MESSAGES = 20_000
PAGE_ITEMS = 50

TOOL_THREADS = 500
TOOL_THREAD_MESSAGES = 10
"""Messages in each of these threads. Every hundredth is left in the middle of its turn."""

DATABASE, EXPORT, BACKUP = "log.db", "export.jsonl", "backup.db"
"""Names of files."""

READS = 200
STATUS_READS = 30


def mixed_events(count: int) -> Iterator[OrchestrationEvent]:
    """Yields `count` events: recorded sessions, and evenly between them threads with tools, then one long thread."""
    tools = many_threads(TOOL_THREADS, TOOL_THREADS * TOOL_THREAD_MESSAGES)
    rare = list(chain(tools, _turns_that_end(LONG_THREAD_MESSAGES)))
    between = count // len(rare)
    sessions = endless_session()
    for number in range(count):
        place, rest = divmod(number, between)
        yield rare[place] if rest == 0 and place < len(rare) else next(sessions)


def _turns_that_end(messages: int) -> Iterator[OrchestrationEvent]:
    running: UUID | None = None
    for event in long_thread(LONG_THREAD, messages):
        if isinstance(event, TurnStarted):
            if running is not None:
                yield TurnCompleted(turn_id=running, thread_id=LONG_THREAD)
            running = event.turn_id
        yield event


def memory_mb(name: str) -> float:
    """Returns the resident memory of this process: `VmRSS` now, `VmHWM` the highest since `forget_highest`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return int(value.split()[0]) * 1_024 / 1e6
    raise ValueError(f"no {name} in /proc/self/status")


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def fill(folder: Path, count: int) -> dict[str, float]:
    """Appends the events; counts only the time of the appends, not that of making the events."""
    events = mixed_events(count)
    events = chain([next(events)], events)  # makes those that are spread among the sessions
    spent = processor = 0.0
    with Database.open(url=address(folder), maintain_projections=False) as database:
        before = memory_mb("VmRSS")
        forget_highest()
        while batch := list(islice(events, FILL_BATCH_EVENTS)):
            start, processor_start = time.perf_counter(), time.process_time()
            database.events.append_all(batch)
            spent += time.perf_counter() - start
            processor += time.process_time() - processor_start
    return {"seconds": spent, "processor_seconds": processor, "added_mb": memory_mb("VmHWM") - before}


class Job(NamedTuple):
    """The log that a piece of work is done with: its number of events, and a folder for files."""

    database: Database
    folder: Path
    events: int


def stream(job: Job) -> None:
    last = 0
    for stored in job.database.events.stream():
        last = stored.sequence
    require(last == job.events, "stream ended early")


def catch_up(job: Job) -> None:
    job.database.projections.catch_up()
    require(not job.database.projections.problems(), "an event does not apply")


def rebuild(job: Job) -> None:
    job.database.projections.rebuild()


def verify(job: Job) -> None:
    require(not job.database.projections.verify(), "verify found a difference")


def export(job: Job) -> None:
    report = export_log(job.database.engine, job.folder / EXPORT)
    require(report.events == job.events, "the export is not complete")


def back_up(job: Job) -> None:
    report = back_up_database(job.database.engine, job.folder / BACKUP)
    require(report.events == job.events, "the backup is not complete")


def compact(job: Job) -> None:
    done = job.database.maintenance.compact(older_than=timedelta(0))
    require(done.removed > 0 and not done.held_back_by, "the compaction did not reach the end")


def vacuum(job: Job) -> None:
    job.database.maintenance.vacuum(full=True)


WORKS: dict[str, Callable[[Job], None]] = {
    "catch_up": catch_up,
    "stream": stream,
    "rebuild": rebuild,
    "verify": verify,
    "export": export,
    "back_up": back_up,
    "compact": compact,
    "vacuum": vacuum,
    "verify_compacted": verify,
}
"""In this order: what comes before `compact` finds the whole log."""


def work(name: str, folder: Path, count: int) -> dict[str, float]:
    """Returns the seconds, the processor time, and the megabytes that the work adds to the memory of the process."""
    with Database.open(url=address(folder), maintain_projections=False) as database:
        before = memory_mb("VmRSS")
        forget_highest()
        start, processor_start = time.perf_counter(), time.process_time()
        WORKS[name](Job(database, folder, count))
        return {
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor_start,
            "added_mb": memory_mb("VmHWM") - before,
        }


def read(folder: Path, count: int) -> list[dict[str, float | str]]:
    """Returns the shortest and the median time of each read, in milliseconds."""
    with Database.open(url=address(folder), maintain_projections=False) as database:
        state = database.read_model
        messages = partial(state.thread_messages, LONG_THREAD, limit=PAGE_ITEMS)
        middle_message = state.thread_messages(LONG_THREAD, limit=LONG_THREAD_MESSAGES // 2)[-1].id
        of_sessions = state.thread_summaries(limit=1)[0].project_id
        summaries = partial(state.thread_summaries, limit=PAGE_ITEMS)
        pages: dict[str, Callable[[], object]] = {
            "`thread_messages(…, limit=50)` of 20,000, the first": messages,
            "the same, the last": partial(messages, newest_first=True),
            "the same, from the middle": partial(messages, after=middle_message),
            "`thread_summaries(limit=50)`": summaries,
            "the same from the middle of the log": partial(summaries, after=count // 2),
            "the same of one project": partial(summaries, of_sessions),
            "the same of one project, from the middle": partial(summaries, of_sessions, after=count // 2),
            "`threads(…, limit=50)` of one project": partial(state.threads, of_sessions, limit=PAGE_ITEMS),
            "`running_turns()`": state.running_turns,
            "`pending_approvals()`": state.pending_approvals,
            "`unfinished_work()`": state.unfinished_work,
        }
        return [timed(name, page, READS) for name, page in pages.items()]


def status(folder: Path) -> list[dict[str, float | str]]:
    """Returns the same for what `peon status` measures, without the start of the command."""
    with Database.open(url=address(folder), maintain_projections=False) as database:
        return [
            timed(
                "`peon status --no-sizes`", partial(measured, database.engine, briefly=False, sizes=False), STATUS_READS
            ),
            timed("`peon status --check`", partial(measured, database.engine, briefly=True), STATUS_READS),
        ]


def timed(name: str, call: Callable[[], object], times: int) -> dict[str, float | str]:
    gc.collect()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1_000)
    return {"name": name, "shortest_ms": min(found), "median_ms": median(found)}


def address(folder: Path) -> str:
    return f"sqlite:///{folder / DATABASE}"


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RuntimeError(otherwise)


def main() -> None:
    name, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    result: object
    if name == "fill":
        result = fill(folder, count)
    elif name == "open":
        result = open_ms(address(folder))
    elif name == "read":
        result = read(folder, count)
    elif name == "status":
        result = status(folder)
    else:
        result = work(name, folder, count)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
