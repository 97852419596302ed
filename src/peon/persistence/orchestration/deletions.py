"""Deletions: a small one removes its rows, a large one only hides them, and they are cleared in bounded steps.

A hidden row stays in its table, so its identifier may be needed again. A project, thread or turn that is created with
the identifier of a hidden one takes over its row, which becomes younger than the deletion. What belongs to the old one
is older than the row, and stays hidden. Rows to which no other refers are removed and inserted.

Deletions are cleared in their order: the row of a turn may have come from a thread that was deleted earlier, with rows
that refer to it.
"""

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
)

from peon.persistence.backends.compiled import CompiledQuery, CompiledStatement
from peon.persistence.orchestration import statements
from peon.persistence.orchestration.visibility import PROJECT, THREAD, TURN, is_visible
from peon.persistence.schema import (
    checkpoints,
    projection_approvals,
    projection_branches,
    projection_commits,
    projection_deletions,
    projection_message_chunks,
    projection_messages,
    projection_open_tool_calls,
    projection_projects,
    projection_selected_thread,
    projection_threads,
    projection_turns,
)

SMALL_ROWS = 500
"""A deletion of at most so many rows removes them itself. It takes as long as a step, and leaves nothing to clear."""

STEP_ROWS = 200
"""Rows that a step clears. An append with a step takes a few milliseconds longer."""

STEP_DELETIONS = 25
"""Deletions that a step ends at most: each takes ten statements, even without rows."""

_threads, _turns, _chunks, _deletions = (
    projection_threads,
    projection_turns,
    projection_message_chunks,
    projection_deletions,
)

_OF_THREAD = (
    projection_open_tool_calls,
    projection_approvals,
    checkpoints,
    projection_messages,
    projection_commits,
    projection_branches,
)
"""What belongs to a thread, except for its turns, and for chunks, which belong to a turn."""


_ONE: ColumnElement[int] = literal_column("1")
_ZERO: ColumnElement[int] = literal_column("0")  # SQLAlchemy gives SQLite an OFFSET beside LIMIT, as a parameter
_MAXIMUM_COUNT: ColumnElement[int] = literal_column(str(SMALL_ROWS + 1))


_id, _sequence = bindparam("of_id", type_=Text), bindparam("at", type_=BigInteger)


def _counts(threads: Callable[[Table], ColumnElement[bool]], *, of_project: bool = False) -> CompiledQuery:
    """Returns the query for the numbers of rows of threads in each table; it counts no further than it must.

    Args:
        threads: Returns the condition of a table's rows that belong to the threads.
        of_project: Whether to count the threads as well, as those of a project.
    """
    turns = select(_turns.c.id).where(threads(_turns)).limit(_MAXIMUM_COUNT).offset(_ZERO)
    conditions = {table: threads(table) for table in (*_OF_THREAD, _turns)} | {_chunks: _chunks.c.turn_id.in_(turns)}
    rows = [select(_ONE).select_from(table).where(condition) for table, condition in conditions.items()]
    if of_project:
        rows.append(select(_ONE).select_from(_threads).where(_threads.c.project_id == _id))
    first = [each.limit(_MAXIMUM_COUNT).offset(_ZERO).subquery() for each in rows]
    counts = [select(func.count()).select_from(each).scalar_subquery() for each in first]
    return CompiledQuery(select(*counts), ["of_id"] * len(counts))


_threads_of_project = select(_threads.c.id).where(_threads.c.project_id == _id)

_COUNTS = {
    THREAD: _counts(lambda table: table.c.thread_id == _id),
    PROJECT: _counts(
        lambda table: table.c.thread_id.in_(_threads_of_project.limit(_MAXIMUM_COUNT).offset(_ZERO)), of_project=True
    ),
}
_DELETE = {THREAD: statements.DELETE_THREAD, PROJECT: statements.DELETE_PROJECT}
_DESELECT = {
    THREAD: CompiledStatement(
        delete(projection_selected_thread).where(projection_selected_thread.c.thread_id == _id), ["of_id"]
    ),
    PROJECT: CompiledStatement(
        delete(projection_selected_thread).where(projection_selected_thread.c.thread_id.in_(_threads_of_project)),
        ["of_id"],
    ),
}
_HIDE_THREADS_OF_PROJECT = CompiledStatement(
    insert(_deletions).from_select(
        ["kind", "id", "sequence"],
        select(literal_column(f"'{THREAD}'", Text), _threads.c.id, _sequence).where(
            _threads.c.project_id == _id, is_visible(_threads)
        ),
    ),
    ["at", "of_id"],
)


def delete_or_hide(connection: Connection, kind: str, key: str, sequence: int, *, deletions_left: bool) -> None:
    """Deletes a project or a thread: with its rows if they are few, or by hiding them.

    Args:
        sequence: The place of the deletion in the log.
        deletions_left: Whether earlier deletions are left to clear. Their rows may refer to those of this one.
    """
    if not deletions_left:
        (numbers,) = _COUNTS[kind].rows(connection, *[key] * (len(_OF_THREAD) + 2 + (kind == PROJECT)))
        if sum(numbers) <= SMALL_ROWS:
            _DELETE[kind].run(connection, [(key,)])
            return
    _DESELECT[kind].run(connection, [(key,)])
    if kind == PROJECT:
        _HIDE_THREADS_OF_PROJECT.run(connection, [(sequence, key)])
    statements.INSERT_DELETION.run(connection, [(kind, key, sequence)])


# The threads of a project come before it. A turn has a sequence of its own.
_OLDEST = CompiledQuery(
    select(_deletions.c.kind, _deletions.c.id, _deletions.c.sequence)
    .order_by(_deletions.c.sequence, _deletions.c.kind.desc(), _deletions.c.id)
    .limit(bindparam("rows"))
    .offset(_ZERO),
    ["rows"],
)
_END_DELETION = CompiledStatement(
    delete(_deletions).where(
        _deletions.c.kind == bindparam("of_kind"), _deletions.c.id == _id, _deletions.c.sequence == _sequence
    ),
    ["of_kind", "of_id", "at"],
)


class _RowsOfThread:
    """The oldest rows of a thread in one table, found and deleted as a range, which every planner does by the index."""

    def __init__(self, table: Table) -> None:
        of_thread = table.c.thread_id == _id
        oldest = (
            select(table.c.sequence)
            .where(of_thread, table.c.sequence < bindparam("before"))
            .order_by(table.c.sequence)
            .limit(bindparam("rows"))
            .offset(_ZERO)
            .subquery()
        )
        self._range = CompiledQuery(
            select(func.min(oldest.c.sequence), func.max(oldest.c.sequence)), ["of_id", "before", "rows"]
        )
        self._delete = CompiledStatement(
            delete(table).where(of_thread, table.c.sequence.between(bindparam("first"), bindparam("last"))),
            ["of_id", "first", "last"],
        )

    def clear(self, connection: Connection, key: str, before: int, rows: int) -> int:
        """Returns the number of rows that it has deleted."""
        ((first, last),) = self._range.rows(connection, key, before, rows)
        return 0 if first is None else self._delete.run(connection, [(key, first, last)])


_ROWS_OF_THREAD = [_RowsOfThread(table) for table in _OF_THREAD]
_TURNS_OF_THREAD = _RowsOfThread(_turns)

_oldest_turns = (
    select(_turns.c.id)
    .where(_turns.c.thread_id == _id, _turns.c.sequence < bindparam("before"))
    .order_by(_turns.c.sequence)
    .limit(bindparam("turns"))
    .offset(_ZERO)
    .subquery()
)
_key_of_chunk = tuple(_chunks.primary_key.columns)
_CHUNKS_OF_TURNS = CompiledQuery(
    select(*_key_of_chunk)
    .join_from(_oldest_turns, _chunks, _chunks.c.turn_id == _oldest_turns.c.id)
    .limit(bindparam("rows"))
    .offset(_ZERO),
    ["of_id", "before", "turns", "rows"],
)
_CHUNKS_OF_TURN = CompiledQuery(
    select(*_key_of_chunk)
    .where(_chunks.c.turn_id == _id, _chunks.c.sequence < bindparam("before"))
    .limit(bindparam("rows"))
    .offset(_ZERO),
    ["of_id", "before", "rows"],
)
_DELETE_CHUNK = CompiledStatement(
    delete(_chunks).where(*(column == bindparam(f"of_{column.name}") for column in _key_of_chunk)),
    [f"of_{column.name}" for column in _key_of_chunk],
)


def _delete_if_older(table: Table) -> CompiledStatement:
    return CompiledStatement(
        delete(table).where(table.c.id == _id, table.c.sequence < bindparam("before")), ["of_id", "before"]
    )


_DELETE_OLD = {PROJECT: _delete_if_older(projection_projects), THREAD: _delete_if_older(_threads)}


def clear_some(connection: Connection) -> int:
    """Removes the oldest hidden rows, in the transaction of `connection`.

    Returns:
        The number of rows that it has removed; 0 if there are none.
    """
    cleared = 0
    for kind, key, sequence in _OLDEST.rows(connection, STEP_DELETIONS):
        if cleared >= STEP_ROWS:
            break
        cleared += _clear(connection, kind, key, sequence, STEP_ROWS - cleared)
        if cleared >= STEP_ROWS:
            break
        # The row itself, which no other refers to now, unless a newer thing has taken it over.
        if kind in _DELETE_OLD:
            cleared += _DELETE_OLD[kind].run(connection, [(key, sequence)])
        cleared += _END_DELETION.run(connection, [(kind, key, sequence)])
    return cleared


def _clear(connection: Connection, kind: str, key: str, sequence: int, rows: int) -> int:
    """Removes at most `rows` rows of a deletion; fewer only if there are no more."""
    if kind == TURN:
        return _delete_chunks(connection, _CHUNKS_OF_TURN.rows(connection, key, sequence, rows))
    if kind == PROJECT:  # its threads are deletions of their own
        return 0
    cleared = 0
    for table in _ROWS_OF_THREAD:
        cleared += table.clear(connection, key, sequence, rows - cleared)
        if cleared >= rows:
            return cleared
    while cleared < rows:
        turns = rows - cleared
        chunks = _CHUNKS_OF_TURNS.rows(connection, key, sequence, turns, turns)
        cleared += _delete_chunks(connection, chunks)
        if len(chunks) == turns:
            break  # the turns may have more
        if not (deleted := _TURNS_OF_THREAD.clear(connection, key, sequence, rows - cleared)):
            break
        cleared += deleted
    return cleared


def _delete_chunks(connection: Connection, keys: list[tuple[str, str, int]]) -> int:
    _DELETE_CHUNK.run(connection, keys)
    return len(keys)
