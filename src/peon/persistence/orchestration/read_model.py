"""The read model: typed queries on the tables of the domain's projection."""

from collections.abc import Callable
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, exists, literal_column, select

from peon.orchestration import (
    Approval,
    Branch,
    Checkpoint,
    Commit,
    Message,
    Project,
    Snapshot,
    Thread,
    ThreadSummary,
    ToolCallMessage,
    Turn,
    UnfinishedWork,
)
from peon.orchestration.model import Value
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log.reader import checked_number
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.orchestration.rows import PENDING, TABLES, ValueT, place_of, read_identifier, read_values
from peon.persistence.orchestration.visibility import is_visible, of_thread, of_turn
from peon.persistence.schema import (
    MAXIMUM_SEQUENCE,
    checkpoints,
    projection_approvals,
    projection_branches,
    projection_commits,
    projection_deletions,
    projection_messages,
    projection_open_tool_calls,
    projection_positions,
    projection_selected_thread,
    projection_threads,
    projection_turns,
)

_SEQUENCE = select(projection_positions.c.sequence).where(projection_positions.c.name == OrchestrationProjection.name)
_SELECTED = select(projection_selected_thread.c.thread_id).where(projection_selected_thread.c.number == 1)

# Literals, for the same reason as that of `PENDING`.
_RUNNING = projection_turns.c.status == literal_column("'running'")
_UNFINISHED = projection_threads.c.status.in_([literal_column("'running'"), literal_column("'awaiting_approval'")])


class ReadModel:
    """Reads the tables of the domain's projection as values of the domain.

    Each call reads one committed state, and does not wait for writers. Lists are in the order in which their members
    were created, which never changes: oldest first, or newest first with `newest_first`. Only `thread_summaries` is in
    the order of activity. `limit` is the maximum
    number of members. `after` identifies the last member of the previous page. A value that does not exist is
    `None`, a list without members is empty.

    A read raises `StoreUnavailable` if the database cannot be read, `ValueError` for a negative limit, and
    `LookupError` if the member that `after` identifies does not exist, or was deleted meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = backend_of(engine).projection_reads(engine)
        self._driver_errors = DriverErrors(engine, expects_tables=True)

    def projects(
        self, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Project]:
        visible = is_visible(TABLES[Project])
        return self._list(Project, visible, limit=limit, after=_by_id(Project, after), newest_first=newest_first)

    def project(self, project_id: UUID) -> Project | None:
        return self._one(Project, TABLES[Project].c.id == str(project_id))

    def threads(
        self, project_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Thread]:
        of_project = projection_threads.c.project_id == str(project_id)
        visible = is_visible(projection_threads)
        return self._list(
            Thread, of_project, visible, limit=limit, after=_by_id(Thread, after, of_project), newest_first=newest_first
        )

    def thread(self, thread_id: UUID) -> Thread | None:
        return self._one(Thread, projection_threads.c.id == str(thread_id))

    def thread_summaries(
        self, project_id: UUID | None = None, *, limit: int | None = None, after: int | None = None
    ) -> list[ThreadSummary]:
        """Returns the threads of a project, or of all, as a list of threads shows them: last activity first.

        Each event of a thread is activity, except its selection and streamed text. A thread with activity moves to the
        front while pages are read, so later pages do not contain it: read the first page again to see it.

        Args:
            project_id: Only threads of this project.
            limit: The maximum number of threads.
            after: The `last_sequence` of the last thread of the previous page.
        """
        conditions = [is_visible(projection_threads)]
        if project_id is not None:
            conditions.append(projection_threads.c.project_id == str(project_id))
        order = projection_threads.c.last_sequence
        if after is not None:
            conditions.append(order < checked_number("after", after))
        _require_limit(limit)
        with self._driver_errors, self._engine.connect() as connection:
            return read_values(connection, ThreadSummary, *conditions, order=order, newest_first=True, limit=limit)

    def selected_thread(self) -> Thread | None:
        """Returns the thread that the user selected last; `None` if there is none, or it was deleted."""
        return self._one(Thread, projection_threads.c.id == _SELECTED.scalar_subquery())

    def turns(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Turn]:
        rows = of_thread(projection_turns, str(thread_id))
        return self._list(Turn, rows, limit=limit, after=_by_id(Turn, after, rows), newest_first=newest_first)

    def turn(self, turn_id: UUID) -> Turn | None:
        return self._one(Turn, projection_turns.c.id == str(turn_id))

    def running_turns(
        self, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Turn]:
        """Returns the running turns of all threads. The one that `after` identifies may have ended by now."""
        visible = is_visible(projection_turns)
        return self._list(Turn, _RUNNING, visible, limit=limit, after=_by_id(Turn, after), newest_first=newest_first)

    def messages(
        self, turn_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Message]:
        """Returns the messages of a turn, with the text that was streamed to them so far."""
        rows = of_turn(projection_messages, str(turn_id))
        return self._list(Message, rows, limit=limit, after=_by_id(Message, after, rows), newest_first=newest_first)

    def thread_messages(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Message]:
        """Returns the messages of all turns of a thread, with the text that was streamed to them so far."""
        rows = of_thread(projection_messages, str(thread_id))
        return self._list(Message, rows, limit=limit, after=_by_id(Message, after, rows), newest_first=newest_first)

    def message(self, message_id: UUID) -> Message | None:
        return self._one(Message, projection_messages.c.id == str(message_id))

    def unanswered_tool_calls(
        self,
        thread_id: UUID,
        *,
        turn_id: UUID | None = None,
        limit: int | None = None,
        after: UUID | None = None,
        newest_first: bool = False,
    ) -> list[ToolCallMessage]:
        """Returns the calls of tools without a result, in a thread or in one of its turns.

        A result answers the last unanswered call of its thread that has its `tool_call_id`, also in a later turn. The
        call that `after` identifies may be answered by now.
        """
        calls, messages = projection_open_tool_calls, projection_messages
        conditions = [of_thread(calls, str(thread_id)), messages.c.id == calls.c.message_id]
        if turn_id is not None:
            conditions.append(calls.c.turn_id == str(turn_id))
        place = _by_id(Message, after, messages.c.thread_id == str(thread_id))
        return self._list(
            ToolCallMessage, *conditions, order=calls.c.sequence, limit=limit, after=place, newest_first=newest_first
        )

    def checkpoints(
        self, thread_id: UUID, *, limit: int | None = None, after: UUID | None = None, newest_first: bool = False
    ) -> list[Checkpoint]:
        rows = of_thread(checkpoints, str(thread_id))
        return self._list(
            Checkpoint, rows, limit=limit, after=_by_id(Checkpoint, after, rows), newest_first=newest_first
        )

    def checkpoint(self, checkpoint_id: UUID) -> Checkpoint | None:
        return self._one(Checkpoint, checkpoints.c.id == str(checkpoint_id))

    def pending_approvals(
        self,
        thread_id: UUID | None = None,
        *,
        limit: int | None = None,
        after: UUID | None = None,
        newest_first: bool = False,
    ) -> list[Approval]:
        """Returns the undecided approvals of a thread, or of all threads.

        The one that `after` identifies may be decided by now.
        """
        approvals = projection_approvals
        rows = is_visible(approvals) if thread_id is None else of_thread(approvals, str(thread_id))
        place = _by_id(Approval, after, rows)
        return self._list(Approval, PENDING, rows, limit=limit, after=place, newest_first=newest_first)

    def approval(self, approval_id: UUID) -> Approval | None:
        """Returns an approval, whether it is pending or decided."""
        return self._one(Approval, projection_approvals.c.id == str(approval_id))

    def commits(
        self, thread_id: UUID, *, limit: int | None = None, after: int | None = None, newest_first: bool = False
    ) -> list[Commit]:
        """Returns the commits of a thread; `after` is a commit's `sequence`."""
        rows = of_thread(projection_commits, str(thread_id))
        # A number that the column cannot hold does not exist either; SQLite would raise an error for it.
        sequence = 0 if after is None or abs(after) > MAXIMUM_SEQUENCE else after
        place = None if after is None else (projection_commits.c.sequence == sequence, rows)
        return self._list(Commit, rows, limit=limit, after=place, newest_first=newest_first)

    def branches(
        self, thread_id: UUID, *, limit: int | None = None, after: str | None = None, newest_first: bool = False
    ) -> list[Branch]:
        """Returns the branches of a thread; `after` is a branch's `name`."""
        rows = of_thread(projection_branches, str(thread_id))
        place = None if after is None else (projection_branches.c.name == after, rows)
        return self._list(Branch, rows, limit=limit, after=place, newest_first=newest_first)

    def unfinished_work(self) -> UnfinishedWork:
        """Returns what is under way in all threads, in one consistent read.

        When an application starts, that is what the process before it left open.
        """
        with self._driver_errors, self._engine.connect() as connection:
            return UnfinishedWork.model_construct(
                turns=tuple(read_values(connection, Turn, _RUNNING, is_visible(projection_turns))),
                pending_approvals=tuple(read_values(connection, Approval, PENDING, is_visible(projection_approvals))),
                threads=tuple(read_values(connection, ThreadSummary, _UNFINISHED, is_visible(projection_threads))),
            )

    def snapshot(self, *, messages: bool = True) -> Snapshot:
        """Returns the whole state in one consistent read.

        Args:
            messages: Whether to include the messages, which are nearly all of a large state. Without them, read
                those that you need with `thread_messages`.
        """
        with self._driver_errors, self._engine.connect() as connection:
            selected = connection.scalar(_SELECTED)
            visible = _visible_in_lists(connection)
            # Without validation: its parts were validated one by one.
            return Snapshot.model_construct(
                sequence=connection.scalar(_SEQUENCE) or 0,
                projects=tuple(read_values(connection, Project, *visible(Project))),
                threads=tuple(read_values(connection, Thread, *visible(Thread))),
                turns=tuple(read_values(connection, Turn, *visible(Turn))),
                messages=tuple(read_values(connection, Message, *visible(Message))) if messages else (),
                checkpoints=tuple(read_values(connection, Checkpoint, *visible(Checkpoint))),
                pending_approvals=tuple(read_values(connection, Approval, PENDING, *visible(Approval))),
                commits=tuple(read_values(connection, Commit, *visible(Commit))),
                branches=tuple(read_values(connection, Branch, *visible(Branch))),
                selected_thread_id=None if selected is None else read_identifier(selected),
            )

    def _one(self, model: type[ValueT], condition: ColumnElement[bool]) -> ValueT | None:
        with self._driver_errors, self._engine.connect() as connection:
            return next(iter(read_values(connection, model, condition, is_visible(TABLES[model]))), None)

    def _list(
        self,
        model: type[ValueT],
        *conditions: ColumnElement[bool],
        order: ColumnElement[int] | None = None,
        limit: int | None,
        after: tuple[ColumnElement[bool], ...] | None,
        newest_first: bool,
    ) -> list[ValueT]:
        """Returns a page; `after` has the conditions that identify the last member of the previous page."""
        _require_limit(limit)
        order = TABLES[model].c.sequence if order is None else order
        with self._driver_errors, self._engine.connect() as connection:
            if after is not None:
                place = place_of(connection, model, *after)
                conditions += (order < place if newest_first else order > place,)
            return read_values(connection, model, *conditions, order=order, newest_first=newest_first, limit=limit)


def _visible_in_lists(connection: Connection) -> Callable[[type[Value]], list[ColumnElement[bool]]]:
    """Returns the conditions with which a list of all threads is read: none if no deletion is left to clear."""
    is_empty = not connection.scalar(select(exists(select(projection_deletions.c.id))))

    def conditions(model: type[Value]) -> list[ColumnElement[bool]]:
        table = TABLES[model]
        if is_empty:
            return []
        if "thread_id" not in table.c:
            return [is_visible(table)]
        # By the threads that are left, because most rows of the table may be hidden.
        threads = select(projection_threads.c.id).where(is_visible(projection_threads))
        return [table.c.thread_id.in_(threads), is_visible(table)]

    return conditions


def _require_limit(limit: int | None) -> None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ValueError(f"limit is a number from 0 on, not {limit!r}")


def _by_id(
    model: type[ValueT], identifier: UUID | None, *of_list: ColumnElement[bool]
) -> tuple[ColumnElement[bool], ...] | None:
    return None if identifier is None else (TABLES[model].c.id == str(identifier), *of_list)
