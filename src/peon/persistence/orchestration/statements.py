"""The statements of the domain's projection."""

from sqlalchemy import BigInteger, BindParameter, Table, Text, bindparam, delete, exists, func, insert, select, update

from peon.persistence.backends.compiled import CompiledQuery, CompiledStatement, insert_into
from peon.persistence.orchestration.visibility import THREAD, deleted_up_to
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


def _update(table: Table, *columns: str) -> CompiledStatement:
    """Returns the statement that sets columns of the row with an `id`, which is the last parameter."""
    values: dict[str, BindParameter[object]] = {column: bindparam(f"new_{column}") for column in columns}
    return CompiledStatement(
        update(table).where(table.c.id == bindparam("of_id")).values(values),
        [*(f"new_{column}" for column in columns), "of_id"],
    )


def _take_over(table: Table) -> CompiledStatement:
    """Returns the statement that gives the hidden row of a deleted thing to a new one with its identifier."""
    return _update(table, *(column.name for column in table.columns if column.name != "id"))


def _delete(table: Table) -> CompiledStatement:
    return CompiledStatement(delete(table).where(table.c.id == bindparam("of_id")), ["of_id"])


INSERT_PROJECT = insert_into(projection_projects)
TAKE_OVER_PROJECT = _take_over(projection_projects)
RENAME_PROJECT = _update(projection_projects, "name")
DELETE_PROJECT = _delete(projection_projects)

INSERT_THREAD = insert_into(projection_threads)
TAKE_OVER_THREAD = _take_over(projection_threads)
SET_THREAD_STATUS = _update(projection_threads, "status", "error")
TOUCH_THREAD = _update(projection_threads, "updated_at")
CHANGE_THREAD = CompiledStatement(
    update(projection_threads)
    .where(projection_threads.c.id == bindparam("of_id"))
    .values(
        updated_at=bindparam("new_updated_at"),
        last_sequence=bindparam("new_last_sequence"),
        turn_count=projection_threads.c.turn_count + bindparam("turns"),
        message_count=projection_threads.c.message_count + bindparam("messages"),
        first_words=func.coalesce(projection_threads.c.first_words, bindparam("words", type_=Text)),
    ),
    ["new_updated_at", "new_last_sequence", "turns", "messages", "words", "of_id"],
)
DELETE_THREAD = _delete(projection_threads)
DESELECT_THREAD = CompiledStatement(delete(projection_selected_thread), [])
SELECT_THREAD = insert_into(projection_selected_thread)

INSERT_TURN = insert_into(projection_turns)
TAKE_OVER_TURN = _take_over(projection_turns)
END_TURN = _update(projection_turns, "status", "error", "completed_at")

REMOVE_MESSAGE = _delete(projection_messages)
INSERT_MESSAGE = insert_into(projection_messages)
SET_CONTENT = _update(projection_messages, "content")

INSERT_CHUNK = insert_into(projection_message_chunks)

# Chunks that are older than the turn are those of a deleted one, whose identifier it has.
_streamed_before = (
    projection_message_chunks.c.turn_id == bindparam("of_turn"),
    projection_message_chunks.c.sequence
    > select(projection_turns.c.sequence).where(projection_turns.c.id == bindparam("in_turn")).scalar_subquery(),
    projection_message_chunks.c.sequence < bindparam("before"),
)
CHUNKS_OF_TURN = CompiledQuery(
    select(projection_message_chunks.c.message_id, projection_message_chunks.c.delta)
    .where(*_streamed_before)
    .order_by(projection_message_chunks.c.message_id, projection_message_chunks.c.sequence),
    ["of_turn", "in_turn", "before"],
)
DELETE_CHUNKS_OF_TURN = CompiledStatement(
    delete(projection_message_chunks).where(*_streamed_before), ["of_turn", "in_turn", "before"]
)

INSERT_TOOL_CALL = insert_into(projection_open_tool_calls)

# A provider may give the same identifier to calls of several turns: a result answers the last call before it.
_calls = projection_open_tool_calls
_last_call = (
    select(func.max(_calls.c.sequence))
    .where(
        _calls.c.thread_id == bindparam("in_thread"),
        _calls.c.tool_call_id == bindparam("call"),
        _calls.c.sequence < bindparam("before"),
        _calls.c.sequence >= deleted_up_to(THREAD, _calls.c.thread_id),
    )
    .scalar_subquery()
)
ANSWER_TOOL_CALL = CompiledStatement(
    delete(_calls).where(_calls.c.thread_id == bindparam("of_thread"), _calls.c.sequence == _last_call),
    ["of_thread", "in_thread", "call", "before"],
)

REMOVE_APPROVAL = _delete(projection_approvals)
INSERT_APPROVAL = insert_into(projection_approvals)
DECIDE_APPROVAL = _update(projection_approvals, "status", "reason", "decided_at")

REMOVE_CHECKPOINT = _delete(checkpoints)
INSERT_CHECKPOINT = insert_into(checkpoints)
RESTORE_CHECKPOINT = _update(checkpoints, "restored_at")

INSERT_COMMIT = insert_into(projection_commits)

# A branch may be created more than once, because git deletes branches without an event. A branch that is older than
# the thread may be pushed.
_branch = (projection_branches.c.thread_id == bindparam("of_thread")) & (
    projection_branches.c.name == bindparam("of_name")
)
REMOVE_DELETED_BRANCH = CompiledStatement(
    delete(projection_branches).where(
        _branch, projection_branches.c.sequence < deleted_up_to(THREAD, projection_branches.c.thread_id)
    ),
    ["of_thread", "of_name"],
)
ADD_BRANCH = CompiledStatement(
    insert(projection_branches).from_select(
        ["thread_id", "name", "sequence"],
        select(
            bindparam("thread_id", type_=Text),
            bindparam("name", type_=Text),
            bindparam("sequence", type_=BigInteger),
        ).where(~exists().where(_branch)),
    ),
    ["thread_id", "name", "sequence", "of_thread", "of_name"],
)
SET_BRANCH_CREATED = CompiledStatement(
    update(projection_branches).where(_branch).values(created_at=bindparam("new_created_at")),
    ["new_created_at", "of_thread", "of_name"],
)
SET_BRANCH_PUSHED = CompiledStatement(
    update(projection_branches)
    .where(_branch)
    .values(remote=bindparam("new_remote"), pushed_at=bindparam("new_pushed_at")),
    ["new_remote", "new_pushed_at", "of_thread", "of_name"],
)

INSERT_DELETION = insert_into(projection_deletions)

ORDER = (
    REMOVE_MESSAGE,
    REMOVE_APPROVAL,
    REMOVE_CHECKPOINT,
    REMOVE_DELETED_BRANCH,
    INSERT_DELETION,
    TAKE_OVER_PROJECT,
    INSERT_PROJECT,
    RENAME_PROJECT,
    TAKE_OVER_THREAD,
    INSERT_THREAD,
    SET_THREAD_STATUS,
    TAKE_OVER_TURN,
    INSERT_TURN,
    END_TURN,
    INSERT_APPROVAL,
    DECIDE_APPROVAL,
    INSERT_CHECKPOINT,
    RESTORE_CHECKPOINT,
    INSERT_COMMIT,
    ADD_BRANCH,
    SET_BRANCH_CREATED,
    SET_BRANCH_PUSHED,
    DESELECT_THREAD,
    SELECT_THREAD,
    TOUCH_THREAD,
    CHANGE_THREAD,
)
"""Removals of hidden rows come first, parents before children, inserts before updates; for deletions see
`deletions.py`."""
