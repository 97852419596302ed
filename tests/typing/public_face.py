"""What type checkers infer for the overloads of the public face. mypy and pyright check this file; nothing runs it."""

from typing import Any, Literal, assert_type
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from peon import (
    AppendCondition,
    AsyncDatabase,
    Database,
    Difference,
    DurableSubscription,
    EventQuery,
    Problem,
    SalvageReport,
    Subscription,
    UndecodableEvent,
    copy_database,
    salvage_database,
)
from peon.orchestration import Message, MessageAppended, OrchestrationEvent, Project, Snapshot, Thread, TurnStarted


def settings_have_the_type_that_is_asked_for(database: Database) -> None:
    settings = database.settings
    assert_type(settings.get("size", type=int), int | None)
    assert_type(settings.get("size", 7, type=int), int)
    assert_type(settings.get("size", "none", type=int), int | str)
    assert_type(settings.get("recent", ["none"], type=list[str]), list[str])
    assert_type(settings.get("theme", type=int | str), int | str | None)
    assert_type(settings.get("anything"), Any)
    assert_type(settings.all(), dict[str, Any])
    settings.get("size", int)
    settings.get(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def settings_of_an_event_loop(database: AsyncDatabase) -> None:
    assert_type(await database.settings.get("size", type=int), int | None)
    assert_type(await database.settings.get("size", 7, type=int), int)
    assert_type(await database.settings.get("theme", type=int | str), int | str | None)


def reads_yield_undecodable_events_only_if_asked(database: Database) -> None:
    events = database.events
    assert_type(events.replay_from(1)[0].event, OrchestrationEvent)
    assert_type(events.replay_all(undecodable=UndecodableEvent)[0].event, OrchestrationEvent | UndecodableEvent)
    assert_type(events.subscribe(), Subscription[OrchestrationEvent])
    assert_type(events.subscribe(undecodable=UndecodableEvent), Subscription[OrchestrationEvent | UndecodableEvent])
    assert_type(events.durable_subscription("a"), DurableSubscription[OrchestrationEvent])
    events.stream(undecodable="keep")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def an_append_takes_the_events_of_one_kind(
    database: Database, turns: list[TurnStarted], connection: Connection
) -> None:
    condition = AppendCondition(EventQuery(thread_id=UUID(int=1), tags={"turn_id": UUID(int=2)}), after=1)
    database.events.append_all(turns, condition=condition, command_id="…", connection=connection)
    database.events.append_all(turns[0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_connection_is_one_of_the_same_face(database: AsyncDatabase, blocking: Connection) -> None:
    async with database.read_transaction() as connection:
        assert_type(connection, AsyncConnection)
    await database.events.append_all([], connection=blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def the_read_model_returns_values(database: Database, thread_id: UUID) -> None:
    read = database.read_model
    assert_type(read.projects(), list[Project])
    assert_type(read.project(thread_id), Project | None)
    assert_type(read.threads(thread_id), list[Thread])
    assert_type(read.thread_messages(thread_id, newest_first=True, limit=50), list[Message])
    assert_type(read.snapshot(), Snapshot)
    with database.read_transaction() as connection:
        assert_type(connection, Connection)


def projections_report(database: Database, target: Database) -> None:
    assert_type(database.projections.problems(), list[Problem])
    assert_type(database.projections.verify(), list[Difference])
    assert_type(copy_database(database, target), int)
    assert_type(salvage_database(database, target), SalvageReport)


def values_are_immutable(project: Project, appended: MessageAppended) -> None:
    assert_type(project.name, str)
    assert_type(appended.message_id, UUID)
    assert_type(appended.type, Literal["MessageAppended"])
