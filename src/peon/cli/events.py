"""`peon events`: the log, event by event."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.text import Text

from peon.cli.commands import command
from peon.cli.invocation import Invocation
from peon.cli.log_times import first_at
from peon.cli.raw_events import RawStored, Selection, parsed
from peon.cli.text import printable
from peon.persistence import Database, EventQuery
from peon.persistence.log.stored_event import NO_TIME

FOLLOWED_EVENTS = 10
"""Stored events that `--follow` shows first, as `tail -f` does."""

TYPE_COLUMNS = 20
"""Columns of the type of an event."""

PAYLOAD_CHARACTERS = 120
"""Characters of a payload that people are shown."""


class LoggedEvent(BaseModel):
    """One event of the log, in a line of its own. The payload is null if it is not JSON; `text` then has it."""

    sequence: int
    stored_at: datetime | None
    event_type: str
    payload: Any
    text: str | None = None


def add_to(application: typer.Typer) -> None:
    command(application, "events", document=LoggedEvent)(show_events)


def show_events(
    invocation: Invocation,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this type. Can be given several times.")
    ] = None,
    project: Annotated[UUID | None, typer.Option("--project", metavar="ID", help="Only events of a project.")] = None,
    thread: Annotated[UUID | None, typer.Option("--thread", metavar="ID", help="Only events of a thread.")] = None,
    turn: Annotated[UUID | None, typer.Option("--turn", metavar="ID", help="Only events of a turn.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="FIELD=VALUE", help="Only events with this value. Can be given several times."),
    ] = None,
    first: Annotated[int, typer.Option("--from", metavar="SEQUENCE", min=1, help="Only from this sequence on.")] = 1,
    last: Annotated[
        int | None, typer.Option("--to", metavar="SEQUENCE", min=0, help="Only up to this sequence.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only stored at this time or later; UTC, ISO 8601.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only stored before this time.")] = None,
    newest_first: Annotated[bool, typer.Option("--newest-first", "-r", help="Begin with the last event.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="EVENTS", min=0, help="Show at most so many.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the last events, then wait for new ones until Ctrl-C.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Show whole payloads.")] = False,
) -> None:
    """Shows stored events, of any application, also those that cannot be decoded.

    With --json, each event is a document in a line of its own, with its whole payload.
    """
    if follow and (newest_first or last is not None or until is not None):
        raise typer.BadParameter("--follow has no end: leave out --newest-first, --to and --until")
    query = EventQuery(
        event_types=event_type or None, project_id=project, thread_id=thread, turn_id=turn, tags=_tags(tag or [])
    )
    starts, ends = _moment("--since", since), _moment("--until", until)
    with invocation.reading() as database:
        after, before = _bounds(database, first, last, starts, ends)
        selection = Selection(database, query)
        if follow:
            if first == 1 and since is None:
                shown = FOLLOWED_EVENTS if limit is None else limit
                newest = [*selection.stored(after, before, shown, newest_first=True)]
                for stored in reversed(newest):
                    _show(invocation, stored, full=full)
                after = newest[0].sequence if newest else database.events.last_sequence()
            with _until_interrupted() as stop:
                for stored in selection.followed(after, stop):
                    _show(invocation, stored, full=full)
            return
        is_empty = True
        for stored in selection.stored(after, before, limit, newest_first=newest_first):
            _show(invocation, stored, full=full)
            is_empty = False
        if is_empty and not invocation.json:
            invocation.note("peon: no event matches" if database.events.last_sequence() else "peon: the log is empty")


@contextmanager
def _until_interrupted() -> Iterator[Event]:
    """Yields an event that Ctrl-C sets. An exception instead could be raised inside the driver, and break a connection.

    A second Ctrl-C is an exception again.
    """
    stop = Event()

    def end(number: int, _: object) -> None:
        signal.signal(number, before)
        stop.set()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _bounds(
    database: Database, first: int, last: int | None, since: datetime | None, until: datetime | None
) -> tuple[int, int]:
    """Returns the sequences between which the events are, both excluded."""
    end = database.events.last_sequence()
    after, before = min(first - 1, end), end + 1 if last is None else min(last, end) + 1
    if since is not None or until is not None:
        with database.read_transaction() as connection:
            if since is not None:
                after = max(after, first_at(connection, since) - 1)
            if until is not None:
                before = min(before, first_at(connection, until))
    return after, before


def _show(invocation: Invocation, stored: RawStored, *, full: bool) -> None:
    event_type, payload = str(stored.event.event_type), stored.event.payload
    value = parsed(payload)
    if invocation.json:
        moment = None if stored.stored_at == NO_TIME else stored.stored_at
        text = str(payload) if value is None else None
        invocation.show_line(
            LoggedEvent(sequence=stored.sequence, stored_at=moment, event_type=event_type, payload=value, text=text)
        )
        return
    line = Text(f"{stored.sequence:>9}  ", no_wrap=True, overflow="ignore")
    line.append(f"{stored.stored_at:%Y-%m-%d %H:%M:%S.%f}  ", "dim")
    line.append(printable(f"{event_type:<{TYPE_COLUMNS}}  ").plain, "bold")
    line.append(printable(str(payload)) if full else printable(_essence(payload, value), limit=PAYLOAD_CHARACTERS))
    invocation.print_line(line)


def _essence(payload: str, value: Any) -> str:
    """Returns the payload without its type and time, which the line has already; identifiers come last."""
    if not isinstance(value, dict):
        return str(payload)
    left = {name: field for name, field in value.items() if name not in ("type", "occurred_at")}
    identifiers = {name: field for name, field in left.items() if name.endswith("_id")}
    return json.dumps({**{n: f for n, f in left.items() if n not in identifiers}, **identifiers}, ensure_ascii=False)


def _tags(given: list[str]) -> dict[str, str]:
    tags = dict(each.partition("=")[::2] for each in given if "=" in each)
    if len(tags) != len(given) or "" in tags:
        raise typer.BadParameter("--tag takes FIELD=VALUE, each field once")
    return tags


def _moment(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} takes a time such as 2026-01-31T12:00:00Z or 2026-01-31") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
