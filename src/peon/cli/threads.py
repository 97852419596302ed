"""`peon threads` and `peon show`: conversations with agents."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Annotated
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, func, select

from peon.cli.commands import command
from peon.cli.errors import CommandFailed
from peon.cli.invocation import Invocation
from peon.cli.raw_events import Selection
from peon.cli.text import printable, table_of
from peon.cli.thread_story import Episode, Story
from peon.orchestration import ThreadStatus
from peon.persistence import Database, EventQuery
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.orchestration.visibility import visible_if_known
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import (
    projection_messages,
    projection_problems,
    projection_projects,
    projection_threads,
    projection_turns,
)

SHOWN_THREADS = 50
"""Threads in the list, unless `--limit` says otherwise."""

TEXT_CHARACTERS = 300
"""Characters of arguments, results and thoughts that people are shown; what a person or the agent said is whole."""

WHOLE_KINDS = ("message", "status", "turn", "git")

SHOWN_RANGES = 3
"""Ranges of sequences beside an episode."""


class ListedThread(BaseModel):
    """A thread, as the tables of the read model have it."""

    id: str
    project_id: str
    project: str | None
    title: str | None
    provider: str
    model: str
    status: str
    error: str | None
    turns: int
    messages: int
    created_at: datetime
    updated_at: datetime


class Threads(BaseModel):
    """The threads with the newest activity, and the number of all threads that match."""

    threads: list[ListedThread]
    total: int


class ShownEpisode(BaseModel):
    """Something that has happened in a thread, and the sequences of the events that tell of it.

    `problem` is why the read model has not applied one of them.
    """

    kind: str
    title: str
    sequences: list[int]
    at: datetime | None
    until: datetime | None
    turn_id: UUID | None
    text: str
    is_wrong: bool
    problem: str | None


class ShownThread(BaseModel):
    """A thread as its events tell it. `read_model` is what the tables say of it; null if they have no such thread."""

    id: UUID
    created: bool
    title: str | None
    provider: str | None
    model: str | None
    runtime_mode: str | None
    read_model: ListedThread | None
    episodes: list[ShownEpisode]


def add_to(application: typer.Typer) -> None:
    command(application, "threads", document=Threads)(list_threads)
    command(application, "show", document=ShownThread)(show_thread)


def list_threads(
    invocation: Invocation,
    project: Annotated[UUID | None, typer.Option("--project", metavar="ID", help="Only threads of a project.")] = None,
    status: Annotated[
        ThreadStatus | None, typer.Option("--status", help="Only threads with this status.", case_sensitive=False)
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="THREADS", min=1, help="Show at most so many.")
    ] = SHOWN_THREADS,
) -> None:
    """Lists the threads with the newest activity first."""
    conditions = [] if project is None else [projection_threads.c.project_id == str(project)]
    conditions += [] if status is None else [projection_threads.c.status == status.value]
    with (
        invocation.reading() as database,
        DriverErrors(database.engine),
        database.read_transaction() as connection,
    ):
        conditions += visible_if_known(connection, projection_threads)
        total = connection.execute(select(func.count()).select_from(projection_threads).where(*conditions)).scalar_one()
        newest = select(projection_threads.c.id).where(*conditions)
        newest = newest.order_by(projection_threads.c.updated_at.desc(), projection_threads.c.id).limit(limit)
        threads = _listed(connection, connection.scalars(newest).all())
    table = table_of("thread", "title", "project", "status", "turns", "messages", "last activity")
    for each in threads:
        table.add_row(
            each.id,
            printable(each.title or "", limit=60),
            printable(each.project or "", limit=30),
            Text(each.status, "red" if each.error else ""),
            f"{each.turns:,}",
            f"{each.messages:,}",
            f"{each.updated_at:%Y-%m-%d %H:%M:%S}",
        )
    more = [Text(f"{total - len(threads):,} more; --limit shows them.")] if total > len(threads) else []
    invocation.show(Threads(threads=threads, total=total), table, *more)


def show_thread(
    invocation: Invocation,
    thread: Annotated[str, typer.Argument(metavar="THREAD", help="The identifier of a thread, or its beginning.")],
    full: Annotated[bool, typer.Option("--full", help="Show whole arguments, results and thoughts.")] = False,
) -> None:
    """Shows what has happened in a thread, as its events tell it, beside their sequences."""
    with invocation.reading() as database:
        thread_id = _identifier(invocation, database, thread)
        story = Story.of(Selection(database, EventQuery(thread_id=thread_id)).stored())
        with DriverErrors(database.engine), database.read_transaction() as connection:
            listed = _listed(connection, [str(thread_id)])
            problems = _problems(database, connection, story.episodes)
    if not story.episodes:
        raise CommandFailed(f"no event tells of thread {thread_id}: run  peon threads{invocation.address}")
    created = story.created
    document = ShownThread(
        id=thread_id,
        created=created is not None,
        title=created and created.title,
        provider=created and created.provider.value,
        model=created and created.model,
        runtime_mode=created and created.runtime_mode.value,
        read_model=listed[0] if listed else None,
        episodes=[_shown(each, problems) for each in story.episodes],
    )
    invocation.show(document, *_heading(document), _table(document.episodes, full=full))


def _identifier(invocation: Invocation, database: Database, given: str) -> UUID:
    try:
        return UUID(given)
    except ValueError:
        pass
    begins = projection_threads.c.id.startswith(given.lower(), autoescape=True)
    with DriverErrors(database.engine), database.read_transaction() as connection:
        visible = visible_if_known(connection, projection_threads)
        found = connection.scalars(select(projection_threads.c.id).where(begins, *visible).limit(2)).all()
    if len(found) != 1:
        what = "several threads begin" if found else "no thread begins"
        raise CommandFailed(f"{what} with {given!r}: run  peon threads{invocation.address}")
    return UUID(found[0])


def _listed(connection: Connection, identifiers: Iterable[str]) -> list[ListedThread]:
    wanted = [*identifiers]
    threads = projection_threads.c
    of_thread = [projection_turns.c.thread_id == threads.id, *visible_if_known(connection, projection_turns)]
    visible = visible_if_known(connection, projection_messages)
    turns = select(func.count()).select_from(projection_turns).where(*of_thread).scalar_subquery()
    of_turn = projection_messages.c.turn_id == projection_turns.c.id
    messages = select(func.count()).select_from(projection_messages.join(projection_turns, of_turn))
    messages = messages.where(*of_thread, *visible)
    query = (
        select(
            *(threads[name] for name in ("id", "project_id", "title", "provider", "model", "status", "error")),
            projection_projects.c.name.label("project"),
            turns.label("turns"),
            messages.scalar_subquery().label("messages"),
            threads.created_at,
            threads.updated_at,
        )
        .join_from(
            projection_threads, projection_projects, projection_projects.c.id == threads.project_id, isouter=True
        )
        .where(threads.id.in_(wanted), *visible_if_known(connection, projection_threads))
    )
    found = {row.id: ListedThread(**row._mapping) for row in connection.execute(query)}
    return [found[identifier] for identifier in wanted if identifier in found]


def _problems(database: Database, connection: Connection, episodes: Iterable[Episode]) -> dict[int, str]:
    """Returns why the read model has not applied events of the episodes, by sequence."""
    if not database.engine.dialect.has_table(connection, projection_problems.name):  # before revision 003
        return {}
    columns = projection_problems.c
    found = connection.execute(select(columns.sequence, columns.reason).where(columns.projection == "orchestration"))
    told = {sequence for each in episodes for sequence in each.sequences}
    return {sequence: reason for sequence, reason in found if sequence in told}


def _shown(episode: Episode, problems: dict[int, str]) -> ShownEpisode:
    problem = next((problems[sequence] for sequence in episode.sequences if sequence in problems), None)
    return ShownEpisode(
        kind=episode.kind,
        title=episode.title,
        sequences=episode.sequences,
        at=episode.at,
        until=episode.until,
        turn_id=episode.turn_id,
        text=episode.text,
        is_wrong=episode.is_wrong or problem is not None,
        problem=problem,
    )


def _heading(shown: ShownThread) -> Iterator[Text]:
    yield Text.assemble("Thread ", (str(shown.id), "bold"), "  ", printable(shown.title or ""))
    if shown.created:
        yield printable(f"{shown.provider} · {shown.model} · {shown.runtime_mode}")
    else:
        yield Text("No event has created it.", "red")
    listed = shown.read_model
    if listed is None:
        yield Text("The read model has no such thread.", "red")
        return
    yield printable(
        f"The read model says: {listed.status}{f' ({listed.error})' if listed.error else ''}, "
        f"{counted(listed.turns, 'turn')}, {counted(listed.messages, 'message')}, project {listed.project}, "
        f"last activity {listed.updated_at:%Y-%m-%d %H:%M:%S}"
    )


def _table(episodes: Iterable[ShownEpisode], *, full: bool) -> Table:
    table = Table("sequences", "at", "took", "what", box=None, pad_edge=False)
    for each in episodes:
        title = printable(each.title)
        title.stylize("bold red" if each.is_wrong else "bold")
        content = [title]
        if each.problem is not None:
            problem = printable(f"not applied to the read model: {each.problem}")
            problem.stylize("red")
            content.append(problem)
        if each.text:
            limit = None if full or each.kind in WHOLE_KINDS else TEXT_CHARACTERS
            content.append(printable(each.text, limit=limit))
        moment = "" if each.at is None else f"{each.at:%m-%d %H:%M:%S}"
        took = "" if each.at is None or each.until is None else _duration(each.until - each.at)
        indent = 0 if each.turn_id is None or each.kind == "turn" else 2
        table.add_row(_ranges(each.sequences), moment, took, Padding(Group(*content), (0, 0, 0, indent)))
    return table


def _ranges(sequences: list[int]) -> str:
    """Returns sequences as people write them: 4, 7-120, 122."""
    runs = [
        [sequence for _, sequence in run]
        for _, run in groupby(enumerate(sorted(sequences)), lambda numbered: numbered[1] - numbered[0])
    ]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:SHOWN_RANGES]]
    return ", ".join([*shown, *(["…"] if len(runs) > SHOWN_RANGES else [])])


def _duration(span: timedelta) -> str:
    seconds = span.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
