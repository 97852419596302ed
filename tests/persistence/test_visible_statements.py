"""What listeners, loggers and tracing see of the statements that the package executes."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy import URL, Engine, event

from peon import AppendCondition, AsyncDatabase, Database, EventQuery
from peon.orchestration import MessageAppended, ProjectCreated, TextContent, ThreadCreated, TurnStarted
from peon.persistence.log import tag_index

PROJECT, THREAD, TURN = UUID(int=1), UUID(int=2), UUID(int=3)
SECRET = "sk-secret-of-a-message"  # noqa: S105
SESSION = [
    ProjectCreated(project_id=PROJECT, name="peon", path="/peon"),
    ThreadCreated(
        thread_id=THREAD, project_id=PROJECT, provider="claude", model="opus", runtime_mode="full_access", title=None
    ),
    TurnStarted(turn_id=TURN, thread_id=THREAD),
    *(
        MessageAppended(
            message_id=UUID(int=number), turn_id=TURN, thread_id=THREAD, role="user", content=TextContent(text=SECRET)
        )
        for number in range(10, 50)
    ),
]
OF_TRANSACTIONS = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA")


@contextmanager
def seen(engine: Engine) -> Iterator[list[str]]:
    """Yields the statements that listeners see."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(" ".join(statement.split()))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def has(statements: list[str], verb: str, table: str) -> bool:
    return any(re.match(rf"{verb}\b.*\b{table}\b", statement) for statement in statements)


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tag index cover a short log, which is otherwise read without it."""
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 5)


def test_a_listener_sees_an_append(database: Database) -> None:
    database.events.append_all(SESSION[:1])  # connects
    with seen(database.engine) as statements:
        database.events.append_all(SESSION[1:])
    if database.engine.dialect.name == "sqlite":
        of_log = [statement for statement in statements if "INSERT INTO events" in statement]
        assert len(of_log) == 3  # the first row, full statements of sixteen rows, the rest
    else:
        assert statements[:3] == [
            "BEGIN ISOLATION LEVEL READ COMMITTED",
            statements[1],
            next(statement for statement in statements if "INSERT INTO events" in statement),
        ]
        assert has(statements[1:2], "SELECT", "append_lock")
    assert has(statements, "INSERT", "projection_messages")


@pytest.mark.usefixtures("short_tail")
def test_a_listener_sees_a_replay_and_a_stream_by_the_index(database: Database) -> None:
    database.events.append_all(SESSION)
    with seen(database.engine) as statements:
        database.events.replay_all()
    assert has(statements, "SELECT", "events")
    with seen(database.engine) as statements:
        list(database.events.stream(query=EventQuery(turn_id=TURN)))
    assert has(statements, "SELECT", "events")
    assert has(statements, "INSERT", "event_tags")


@pytest.mark.usefixtures("short_tail")
def test_a_listener_sees_a_condition_and_a_command(database: Database) -> None:
    database.events.append_all(SESSION)
    turns = [TurnStarted(turn_id=UUID(int=number), thread_id=THREAD) for number in (98, 99)]
    with seen(database.engine) as statements:
        database.events.append_all(turns[:1], condition=AppendCondition(EventQuery(turn_id=turns[0].turn_id), after=0))
        database.events.append_all(turns[1:], command_id=UUID(int=5))
    assert has(statements, "SELECT", "tag_positions")
    assert has(statements, "INSERT", "command_receipts")


def test_a_listener_sees_a_subscription(log_alone: Database) -> None:
    log_alone.events.append_all(SESSION[:2])
    with seen(log_alone.engine) as statements, log_alone.events.durable_subscription("consumer") as subscription:
        assert next(subscription).sequence == 1
        subscription.save_position()
    assert has(statements, "SELECT", "events")
    assert has(statements, "INSERT|UPDATE", "subscription_positions")


def test_a_listener_sees_a_rebuild_and_a_verification(database: Database) -> None:
    database.events.append_all(SESSION)
    with seen(database.engine) as statements:
        database.projections.rebuild()
    assert has(statements, "SELECT", "events")
    assert has(statements, "INSERT", "projection_messages")
    with seen(database.engine) as statements:
        assert database.projections.verify() == []
    assert has(statements, "SELECT", "projection_messages")


@pytest.mark.usefixtures("short_tail")
def test_the_driver_executes_nothing_that_a_listener_does_not_see(sqlite_url: URL) -> None:
    unseen: list[str] = []
    executing = False

    def around(executes: bool) -> Callable[..., None]:
        def note(*_: object) -> None:
            nonlocal executing
            executing = executes

        return note

    def trace(statement: str) -> None:
        if not executing and not statement.startswith(OF_TRANSACTIONS):
            unseen.append(statement)

    with Database.open(url=sqlite_url) as opened:
        opened.engine.dispose()
        event.listen(opened.engine, "connect", lambda connection, _: connection.set_trace_callback(trace))
        event.listen(opened.engine, "before_cursor_execute", around(True))
        event.listen(opened.engine, "after_cursor_execute", around(False))
        condition = AppendCondition(EventQuery(turn_id=UUID(int=99)), after=0)
        opened.events.append_all(SESSION, condition=condition)
        opened.events.replay_all()
        list(opened.events.stream(query=EventQuery(thread_id=THREAD)))
        opened.projections.rebuild()
        opened.projections.verify()
        opened.settings.set("theme", "dark")
        opened.read_model.threads(PROJECT)
        with opened.events.durable_subscription("consumer") as subscription:
            next(subscription)
            subscription.save_position()
    assert unseen == []


async def in_event_loop(url: URL) -> list[str]:
    async with await AsyncDatabase.open(url=url) as opened:
        with seen(opened.engine.sync_engine) as statements:
            await opened.events.append_all(SESSION)
            await opened.events.replay_all()
    return statements


def test_tasks_show_the_statements_that_threads_do(url: URL, migrated: None) -> None:
    statements = asyncio.run(in_event_loop(url))
    assert has(statements, "SELECT", "events")
    assert has(statements, "INSERT|WITH", "events")
    assert has(statements, "INSERT", "projection_messages")


def test_echo_logs_statements_without_their_parameters(
    url: URL, migrated: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with Database.open(url=url, echo=True) as opened:
        opened.events.append_all(SESSION)
        opened.events.replay_all()
    logging.getLogger("sqlalchemy.engine.Engine").handlers.clear()
    logged = caplog.text + capsys.readouterr().out
    assert "INSERT INTO events" in logged
    assert "SELECT events.sequence" in logged
    assert SECRET not in logged
