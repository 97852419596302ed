"""What type checkers infer for events of an application's own. mypy and pyright check this file; nothing runs it."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, assert_type

from pydantic import BaseModel, Field
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from peon import (
    AsyncDatabase,
    AsyncEventStore,
    Database,
    EventCodec,
    EventStore,
    Projection,
    Refusal,
    StoredEvent,
    UndecodableEvent,
    copy_database,
)
from peon.orchestration import Event, OrchestrationEvent, ProjectRenamed


class Noted(BaseModel):
    type: Literal["Noted"] = "Noted"
    text: str


class Starred(Event):
    type: Literal["Starred"] = "Starred"
    stars: int


AppEvent = OrchestrationEvent | Noted | Starred
Discriminated = Annotated[OrchestrationEvent | Noted | Starred, Field(discriminator="type")]

codec = EventCodec(AppEvent, tags=["text"])


def a_codec_infers_its_union() -> None:
    assert_type(codec, EventCodec[AppEvent])
    assert_type(EventCodec(Discriminated), EventCodec[AppEvent])
    assert_type(EventCodec(Noted | Starred), EventCodec[Noted | Starred])
    assert_type(EventCodec(Noted), EventCodec[Noted])
    assert_type(codec.decode(1, "Noted", "{}"), AppEvent)
    EventCodec(Noted | int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def check_note(event: Noted) -> None: ...


def a_check_is_for_the_events_of_the_union() -> None:
    EventCodec(Noted, check=check_note)
    EventCodec(Noted | Starred, check=check_note)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def open_infers_the_events(note: Noted, renamed: ProjectRenamed) -> None:
    with Database.open(url="sqlite://", codec=codec) as database:
        assert_type(database, Database[AppEvent])
        assert_type(database.events, EventStore[AppEvent])
        assert_type(database.events.append_all([note, renamed]), list[StoredEvent[AppEvent]])
        assert_type(database.events.replay_all(), list[StoredEvent[AppEvent]])
        for sequence, event, _ in database.events.stream():
            assert_type(sequence, int)
            assert_type(event, AppEvent)
        with database.events.subscribe() as subscription:
            for stored in subscription:
                assert_type(stored, StoredEvent[AppEvent])
                if isinstance(stored.event, Noted):
                    assert_type(stored.event.text, str)
        with database.events.durable_subscription("notes") as durable:
            assert_type(next(durable), StoredEvent[AppEvent])
        for kept in database.events.stream(undecodable=UndecodableEvent):
            assert_type(kept.event, AppEvent | UndecodableEvent)
        database.events.append_all([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def open_infers_the_events_for_an_event_loop(note: Noted, renamed: ProjectRenamed) -> None:
    async with await AsyncDatabase.open(url="sqlite://", codec=codec) as database:
        assert_type(database, AsyncDatabase[AppEvent])
        assert_type(database.events, AsyncEventStore[AppEvent])
        assert_type(await database.events.append_all([note, renamed]), list[StoredEvent[AppEvent]])
        async for stored in database.events.stream():
            assert_type(stored.event, AppEvent)
        async with database.events.subscribe() as subscription:
            async for stored in subscription:
                assert_type(stored, StoredEvent[AppEvent])
            async for batch in subscription.batches():
                assert_type(batch, list[StoredEvent[AppEvent]])
        async for kept in database.events.stream(undecodable=UndecodableEvent):
            assert_type(kept.event, AppEvent | UndecodableEvent)


async def without_a_codec_the_events_are_the_domains(note: Noted, renamed: ProjectRenamed) -> None:
    with Database.open() as database:
        assert_type(database, Database)
        assert_type(database, Database[OrchestrationEvent])
        assert_type(next(database.events.stream()).event, OrchestrationEvent)
        database.events.append_all([renamed])
        database.events.append_all([note])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    asynchronous = await AsyncDatabase.open()
    assert_type(asynchronous, AsyncDatabase)
    assert_type(asynchronous, AsyncDatabase[OrchestrationEvent])
    await asynchronous.events.append_all([note])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def the_engine_of_the_application(engine: Engine, asynchronous: AsyncEngine) -> None:
    assert_type(Database(engine), Database[OrchestrationEvent])
    assert_type(Database(engine, codec), Database[AppEvent])
    assert_type(AsyncDatabase(asynchronous), AsyncDatabase[OrchestrationEvent])
    assert_type(AsyncDatabase(asynchronous, codec), AsyncDatabase[AppEvent])
    assert_type(EventStore(engine), EventStore[OrchestrationEvent])
    assert_type(EventStore(engine, EventCodec(Noted | Starred)), EventStore[Noted | Starred])
    assert_type(AsyncEventStore(asynchronous, codec), AsyncEventStore[AppEvent])


class NotesDatabase(Database[AppEvent]):
    """A class of an application's own keeps its type."""


def a_subclass_keeps_its_type() -> None:
    assert_type(NotesDatabase.open(codec=codec), NotesDatabase)
    assert_type(Database[AppEvent].open(codec=codec), Database[AppEvent])


def a_database_has_one_union(database: Database[AppEvent], domain_only: Database) -> None:
    annotated: Database[AppEvent] = Database.open(codec=EventCodec(AppEvent))
    copy_database(annotated, domain_only)  # whatever their events are
    other: Database[AppEvent] = domain_only  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    other.close()


class Notes(Projection):
    """A projection names the union that its database has."""

    name = "notes"
    version = 1
    tables = ()

    def apply(self, connection: Connection, events: Sequence[StoredEvent[AppEvent]]) -> Iterator[Refusal]:
        for sequence, event, _ in events:
            match event:
                case Noted(text=text):
                    assert_type(text, str)
                    yield Refusal(sequence, "full")
                case Starred():
                    assert_type(event.stars, int)
                case _:
                    assert_type(event, OrchestrationEvent)


Database.open(url="sqlite://", codec=codec, projections=[Notes()])
