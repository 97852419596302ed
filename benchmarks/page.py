"""Writes the benchmark page and its charts from the results of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import append_and_replay
import commit_order
import copying
import open_and_memory
import postgresql
import projections
import reads
import subscriptions
from charts import Series, write_bar_chart
from commit_order import WRITERS, OrderCost
from comparison import Comparison, comparison_table
from copying import Copy
from environment import Environment
from open_and_memory import LongLog
from open_and_memory_process import WORKS
from projections import ProjectionResults
from reads import Read
from subscriptions import Delivery

TEMPLATE = Path(__file__).with_name("page_template.md")
TRIAL = "**This was a trial run with `--quick`: the figures are too noisy to rely on, and the logs are short.**\n\n"
NO_SERVER = "Not measured: this run had no PostgreSQL server."


@dataclass(frozen=True)
class Results:
    """All that a run measured. Lists that need PostgreSQL are empty without a server.

    Attributes:
        rounds: Alternating rounds of the baseline and of peon.
        trial: Whether the run was too short for good figures, see `--quick`.
        payload_characters: Average length of a payload of the sample session.
    """

    environment: Environment
    rounds: int
    trial: bool
    payload_characters: float
    log: list[Comparison]
    postgresql: list[Comparison]
    commit_order: list[OrderCost]
    projections: list[ProjectionResults]
    reads: list[Read]
    subscriptions: list[Delivery]
    long_logs: list[LongLog]
    copies: list[Copy]


def page_text(results: Results, charts: str) -> str:
    """Returns the page as Markdown.

    Args:
        charts: The folder of the charts, relative to the page.
    """

    def chart(name: str, description: str) -> str:
        return f"![{description}]({charts}/{name}.svg)"

    sections = {
        "trial": TRIAL if results.trial else "",
        "environment": results.environment.table().to_markdown(),
        "rounds": str(results.rounds),
        "payload": f"{results.payload_characters:,.0f}",
        "replay_rounds": str(projections.REPLAY_ROUNDS),
        "log": _section(
            chart("log", "Ratio to plain sqlite3 of appends and reads"),
            comparison_table(results.log, append_and_replay.BASELINE).to_markdown(),
        ),
        "postgresql": NO_SERVER,
        "commit_order": NO_SERVER,
        "projections": _section(
            chart("projections", "Ratios of appends with projections, of catch_up, rebuild and verify"),
            *(_projections_section(session) for session in results.projections),
        ),
        "reads": reads.table(results.reads).to_markdown(),
        "subscriptions": _section(
            chart("subscriptions", "Milliseconds from append to delivery"),
            subscriptions.table(results.subscriptions).to_markdown(),
        ),
        "threads": str(open_and_memory.THREADS),
        "long_logs": _section(
            chart("memory", "Megabytes that long work adds to the memory of the process"),
            open_and_memory.table(results.long_logs).to_markdown(),
        ),
        "copies": NO_SERVER,
    }
    if results.postgresql:
        sections["postgresql"] = _section(
            chart("postgresql", "Ratio to plain psycopg of appends and reads"),
            comparison_table(results.postgresql, postgresql.BASELINE).to_markdown(),
        )
    if results.commit_order:
        sections["commit_order"] = _section(
            chart("commit_order", "Ratio to appends without any lock"),
            commit_order.table(results.commit_order).to_markdown(),
        )
    if results.copies:
        first = results.copies[0]
        sections["copies"] = _section(
            f"{first.events:,} events of the sample session, {first.megabytes:.0f} MB as an SQLite file:",
            copying.table(results.copies).to_markdown(),
        )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(sections)


def write_charts(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_ratios(folder / "log.svg", results.log, "ratio to plain sqlite3")
    if results.postgresql:
        _write_ratios(folder / "postgresql.svg", results.postgresql, "ratio to plain psycopg")
    if results.commit_order:
        _write_commit_order(folder / "commit_order.svg", results.commit_order)
    _write_projections(folder / "projections.svg", results.projections)
    write_bar_chart(
        folder / "subscriptions.svg",
        [result.name for result in results.subscriptions],
        [
            Series("median", [result.median_ms for result in results.subscriptions]),
            Series("99th percentile", [result.percentile_99_ms for result in results.subscriptions]),
        ],
        "milliseconds from append to delivery",
        value_format="{:.1f}",
    )
    write_bar_chart(
        folder / "memory.svg",
        WORKS,
        [Series(f"{log.events:,} events", [log.added_mb[work] for work in WORKS]) for log in results.long_logs],
        "megabytes added",
        targets=[open_and_memory.STREAM_TARGET_MB if work == "stream" else None for work in WORKS],
        value_format="{:.1f}",
    )


def _section(*blocks: str) -> str:
    return "\n\n".join(blocks)


def _projections_section(session: ProjectionResults) -> str:
    appends, replays = projections.tables(session)
    return _section(f"{appends.title}:", appends.to_markdown(), f"{replays.title}:", replays.to_markdown())


def _write_ratios(path: Path, comparisons: Sequence[Comparison], axis: str) -> None:
    write_bar_chart(
        path,
        [result.name.partition(" (")[0] for result in comparisons],
        [Series("peon", [result.ratio for result in comparisons])],
        axis,
        targets=[result.target for result in comparisons],
    )


def _write_commit_order(path: Path, costs: Sequence[OrderCost]) -> None:
    base = next(cost for cost in costs if cost.name == commit_order.UNORDERED)
    write_bar_chart(
        path,
        [cost.name for cost in costs],
        [
            Series("1 writer", [cost.one_writer / base.one_writer for cost in costs]),
            Series(f"{WRITERS} writers", [cost.all_writers / base.all_writers for cost in costs]),
        ],
        "ratio to appends without any lock",
    )


def _write_projections(path: Path, sessions: Sequence[ProjectionResults]) -> None:
    figures = [[*session.appends, *session.replays] for session in sessions]
    write_bar_chart(
        path,
        [figure.name for figure in figures[0]],
        [
            Series(f"chunks of {session.chunk_characters} characters", [figure.ratio for figure in own])
            for session, own in zip(sessions, figures, strict=True)
        ],
        "ratio to plain sqlite3 (append) or to stream (others)",
        targets=[figure.target for figure in figures[0]],
    )
