"""The state of a database, as people read it."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from peon.cli.status_document import Check, LogStatus, Status
from peon.cli.subscriptions import tables_of
from peon.cli.text import printable, table_of

SHOWN_USERS = 10


def status_for_people(status: Status) -> Iterator[RenderableType]:
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(status):
        facts.add_row(name, value)
    yield facts
    if status.projections:
        table = table_of("projection", "version", "position", "lag", "problems")
        for each in status.projections:
            problems = Text(f"{each.problems:,}", "red" if each.problems else "")
            table.add_row(printable(each.name), str(each.version), f"{each.position:,}", f"{each.lag:,}", problems)
        yield table
    if status.subscriptions:
        yield from tables_of(status.subscriptions)


def checks_for_people(checks: list[Check]) -> Iterator[RenderableType]:
    table = table_of("check", "found", "limit", "")
    for each in checks:
        outcome = Text("ok", "green") if each.ok else Text("FAILED", "bold red")
        table.add_row(printable(each.name), printable(each.found), each.limit, outcome)
    yield table


def _facts(status: Status) -> Iterator[tuple[str, Text]]:
    yield "database", printable(status.database)
    yield "backend", Text(f"{status.backend} {status.version}")
    newest = "the newest" if status.revision == status.newest_revision else f"the newest is {status.newest_revision}"
    yield "revision", printable(f"{status.revision or 'base'}, {newest}")
    yield from _facts_of_log(status.log)
    storage = status.storage
    yield "size", Text(decimal(storage.database))
    for name, size in (
        ("  free", storage.free),
        ("  log", storage.log),
        ("  projections", storage.projections),
        ("  other tables", storage.other_tables),
        ("  indexes", storage.indexes),
        ("-wal file", storage.write_ahead_log),
    ):
        if size is not None:
            yield name, Text(decimal(size))
    for name, count in (("running turns", status.running_turns), ("pending approvals", status.pending_approvals)):
        if count is not None:
            yield name, Text(f"{count:,}")
    if status.users is not None:
        more = len(status.users) - SHOWN_USERS
        shown = [*status.users[:SHOWN_USERS], *([f"{more:,} more"] if more > 0 else [])]
        yield "used by", printable(", ".join(shown) or "no other process")


def _facts_of_log(log: LogStatus) -> Iterator[tuple[str, Text]]:
    if log.first_sequence is None:
        yield "events", Text("none")
        return
    average = "" if log.events_a_day is None else f", {log.events_a_day:,.0f} a day on average"
    yield "events", Text(f"{log.events:,}{average}, {log.events_last_day:,} in the last 24 hours")
    for name, sequence, moment in (
        ("first", log.first_sequence, log.first_stored_at),
        ("last", log.last_sequence, log.last_stored_at),
    ):
        yield f"  {name}", Text(f"{sequence:,}" + ("" if moment is None else f" at {moment:%Y-%m-%d %H:%M:%S} UTC"))
