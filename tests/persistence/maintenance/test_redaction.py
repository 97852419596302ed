"""Redaction replaces the content of events and rows, and nothing else."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from helpers.orchestration_scene import project, thread
from helpers.own_events import AppEvent, Noted, Notes, codec
from helpers.secret import SECRET
from helpers.word_count_projection import WordCount
from pydantic import BaseModel
from sqlalchemy import URL, inspect, select, text
from sqlalchemy.exc import DBAPIError

from peon import AsyncDatabase
from peon.orchestration import (
    MARKER,
    BranchCreated,
    ChangesCommitted,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    TextContent,
    ThreadDeleted,
    ToolCallContent,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    redacted,
)
from peon.persistence import CommandConflict, Database, EventQuery, PersistenceError, schema
from peon.persistence.backends.side_tables import SIDE_PREFIX
from peon.persistence.log import tag_index
from peon.persistence.maintenance import Redaction
from peon.persistence.schema import event_tags, tags

PROJECT, OTHER_PROJECT, THREAD, OTHER, TURN, MESSAGE, CALL, COMMAND = (UUID(int=number) for number in range(1, 9))
OF_THREAD = EventQuery(thread_id=THREAD)

TOLD: list[OrchestrationEvent] = [
    ProjectCreated(project_id=PROJECT, name=SECRET, path=f"/home/{SECRET}"),
    thread(THREAD, PROJECT),
    thread(OTHER, PROJECT),
    TurnStarted(turn_id=TURN, thread_id=THREAD),
    MessageAppended(
        message_id=MESSAGE, turn_id=TURN, thread_id=THREAD, role=MessageRole.ASSISTANT, content=TextContent(text="")
    ),
    *(
        MessageChunkReceived(message_id=MESSAGE, turn_id=TURN, thread_id=THREAD, delta=delta)
        for delta in ("The key is ", SECRET, ".")
    ),
    MessageAppended(
        message_id=CALL,
        turn_id=TURN,
        thread_id=THREAD,
        role=MessageRole.ASSISTANT,
        content=ToolCallContent(tool_call_id="call", name="shell", arguments={"command": SECRET}),
    ),
    TurnFailed(turn_id=TURN, thread_id=THREAD, error=SECRET),
]
COMMITTED = [
    ChangesCommitted(thread_id=THREAD, commit="c0ffee", message=SECRET),
    ChangesCommitted(thread_id=OTHER, commit="decaf", message="Print high water"),
]


def places(database: Database[Any]) -> list[tuple[Any, ...]]:
    """Returns what a redaction must keep of each event: its place, type, times and identifiers."""
    return [
        (
            stored.sequence,
            stored.stored_at,
            type(stored.event),
            {
                name: value
                for name, value in dict(stored.event).items()
                if isinstance(value, UUID) or name.endswith("at")
            },
        )
        for stored in database.events.stream()
    ]


@pytest.mark.postgresql_too("the trigger that forbids changes of the log")
def test_content_goes_and_everything_else_stays(migrated_lasting_url: URL, small_pages: None) -> None:
    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.events.append_all(TOLD)
        database.events.append_all(COMMITTED, command_id=COMMAND)
        assert len(list(database.events.stream(query=OF_THREAD))) == 9  # and fills the index of tags
        before = places(database)
        planned = database.maintenance.redact(OF_THREAD, dry_run=True)
        assert SECRET in str(database.events.replay_all())

        done = database.maintenance.redact(OF_THREAD, by="ada")

        assert planned == Redaction(7, (), 12, None)
        assert done[:3] == planned[:3]
        assert places(database) == before
        events = [stored.event for stored in database.events.stream()]
        assert SECRET not in str(events[1:])
        assert events[-1] == COMMITTED[1]
        message = next(each for each in database.read_model.messages(TURN) if each.id == MESSAGE)
        assert message.content == TextContent(text=MARKER)
        assert [each.message for each in database.read_model.commits(THREAD)] == [MARKER]
        assert database.read_model.turns(THREAD)[0].error == MARKER
        assert database.projections.verify() == []
        assert len(list(database.events.stream(query=OF_THREAD))) == 9
        assert database.maintenance.redact(OF_THREAD).events == 0
        (act,) = database.maintenance.redactions()
        assert (act.number, act.redacted_by, act.events) == (1, "ada", 7)
        assert act.query == f'[{{"thread_id":"{THREAD}"}}]'
        assert act.rule == "peon.orchestration.redaction.redacted"
        with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
            connection.execute(text("UPDATE events SET payload = '{}' WHERE sequence = 1"))


def test_a_project_is_redacted_with_all_its_threads(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*TOLD, *COMMITTED, ThreadDeleted(thread_id=THREAD), project(OTHER_PROJECT)])
        kept = database.events.replay_all()[-1]

        database.maintenance.redact(database.maintenance.of_project(PROJECT))

        events = database.events.replay_all()
        assert SECRET not in str(events)
        assert "high water" not in str(events)
        assert events[-1] == kept
        assert SECRET not in str(database.read_model.snapshot())
        assert database.projections.verify() == []


def test_the_side_tables_of_a_killed_rebuild_lose_the_content_too(migrated_sqlite_url: URL) -> None:
    left = SIDE_PREFIX + schema.projection_messages.name
    with Database.open(url=migrated_sqlite_url) as database:
        database.events.append_all(TOLD)
        with database.engine.begin() as connection:
            columns = "id TEXT PRIMARY KEY, turn_id, role, content, created_at, sequence, thread_id"
            connection.execute(text(f"CREATE TABLE {left} ({columns})"))
            connection.execute(text(f"INSERT INTO {left} SELECT * FROM projection_messages"))

        database.maintenance.redact(OF_THREAD)

        assert not inspect(database.engine).has_table(left)


def test_a_repeated_command_is_recognised(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(TOLD)
        first = database.events.append_all(COMMITTED, command_id=COMMAND)
        database.maintenance.redact(OF_THREAD)

        again = database.events.append_all(COMMITTED, command_id=COMMAND)

        assert [stored.sequence for stored in again] == [stored.sequence for stored in first]
        assert [stored.event.message for stored in again] == [MARKER, "Print high water"]  # type: ignore[union-attr]
        for others in ([COMMITTED[0]], [TOLD[0], COMMITTED[1]], [COMMITTED[0], COMMITTED[0]]):
            with pytest.raises(CommandConflict):
                database.events.append_all(others, command_id=COMMAND)


def test_tags_follow_the_redacted_event(migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)  # each query fills the index

    def rule(event: BaseModel) -> BaseModel:
        return event.model_copy(update={"author": MARKER}) if isinstance(event, Noted) else redacted(event)

    with Database.open(url=migrated_lasting_url, codec=codec, projections=[Notes()]) as database:
        notes: Sequence[AppEvent] = [Noted(thread_id=THREAD, author=SECRET), Noted(thread_id=OTHER, author="grace")]
        database.events.append_all([*TOLD, *notes])
        assert len(list(database.events.stream(query=EventQuery(tags={"author": SECRET})))) == 1
        database.maintenance.redact(EventQuery(thread_id=OTHER), rule)
        database.events.append_all([Noted(thread_id=THREAD, author=SECRET)])

        assert database.maintenance.redact(OF_THREAD, rule).events == 8

        def found(author: str) -> list[int]:
            query = EventQuery(tags={"author": author})
            return [stored.sequence for stored in database.events.stream(query=query)]

        database.events.append_all([Noted(thread_id=THREAD, author="alan")])
        assert [found(author) for author in (SECRET, "grace", MARKER, "alan")] == [[], [], [11, 12, 13], [14]]
        with database.engine.connect() as connection:
            indexed = select(event_tags.c.sequence).join_from(event_tags, tags, tags.c.id == event_tags.c.tag_id)
            of_author = indexed.where(tags.c.name == "author").order_by(event_tags.c.sequence)
            assert [*connection.scalars(of_author)] == [11, 12, 13, 14]
            assert SECRET not in connection.scalars(select(tags.c.value)).all()
        assert database.projections.verify() == []
        queried = EventQuery(tags={"author": MARKER})
        database.maintenance.redact(queried, lambda event: event.model_copy(update={"author": "nobody"}))
        assert database.maintenance.redactions()[-1].query == '[{"tags":["author"]}]'


@pytest.mark.parametrize(
    ("rule", "error", "match"),
    [
        (lambda _: TurnCompleted(turn_id=TURN, thread_id=THREAD), TypeError, "has made a TurnCompleted of event 2"),
        (lambda event: event.model_copy(update={"occurred_at": "now"}), ValueError, "cannot be stored for event 2"),
        (
            lambda event: event.model_copy(update={"turn_id": COMMAND}) if isinstance(event, TurnStarted) else event,
            ValueError,
            "makes event 5 contradict others",
        ),
    ],
)
def test_a_wrong_rule_changes_nothing(migrated_lasting_url: URL, rule: Any, error: type[Exception], match: str) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(TOLD)
        before = database.events.replay_all()

        with pytest.raises(error, match=match):
            database.maintenance.redact(OF_THREAD, rule)

        assert database.events.replay_all() == before
        assert database.maintenance.redactions() == []
        assert database.projections.verify() == []


def test_the_default_rule_refuses_other_events(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, codec=codec) as database:
        database.events.append_all([*TOLD, Noted(thread_id=THREAD, author=SECRET)])
        with pytest.raises(TypeError, match="Noted is not an event of peon"):
            database.maintenance.redact(OF_THREAD)


def test_an_undecodable_event_stays_and_is_reported(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, codec=codec) as database:
        database.events.append_all([*TOLD, Noted(thread_id=THREAD, author="ada")])
    with Database.open(url=migrated_lasting_url) as database:
        done = database.maintenance.redact(OF_THREAD)
        assert (done.events, done.undecodable) == (6, (11,))
    with Database.open(url=migrated_lasting_url, codec=codec) as database:
        assert [type(stored.event) for stored in database.events.stream(after=10)] == [Noted]
        assert database.projections.verify() == []


def test_a_redaction_without_the_code_of_a_projection_is_refused(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.events.append_all(TOLD)
    with Database.open(url=migrated_lasting_url) as database:
        for dry_run in (True, False):
            with pytest.raises(PersistenceError, match="has the projection word_count"):
                database.maintenance.redact(OF_THREAD, dry_run=dry_run)
        assert SECRET in str(database.events.replay_all())


@pytest.mark.postgresql_too("what concurrent transactions see")
def test_events_that_are_stored_meanwhile_are_redacted_too(migrated_lasting_url: URL, small_pages: None) -> None:
    with Database.open(url=migrated_lasting_url) as database, Database.open(url=migrated_lasting_url) as other:
        database.events.append_all(TOLD)
        added: list[int] = []

        def append_once(*_: int) -> None:
            if not added:
                added.append(other.events.append_all(COMMITTED)[0].sequence)

        done = database.maintenance.redact(OF_THREAD, progress=append_once)

        assert (done.events, added) == (7, [11])
        assert SECRET not in str(database.events.replay_all()[1:])
        assert database.projections.verify() == []
        assert database.maintenance.redactions()[0].events == 7


def test_a_compaction_meanwhile_makes_it_begin_again(migrated_lasting_url: URL, small_pages: None) -> None:
    with Database.open(url=migrated_lasting_url) as database, Database.open(url=migrated_lasting_url) as other:
        database.events.append_all([*TOLD, *COMMITTED])
        removed: list[int] = []

        def compact_once(*_: int) -> None:
            if not removed:
                removed.append(other.maintenance.compact(older_than=timedelta(0)).removed)

        done = database.maintenance.redact(OF_THREAD, progress=compact_once)

        assert (done.events, removed) == (5, [2])
        assert SECRET not in str(database.events.replay_all()[1:])
        assert database.projections.verify() == []
        assert len(database.maintenance.redactions()) == 1


def test_a_compaction_while_it_is_planned_makes_it_begin_again(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, Database.open(url=migrated_lasting_url) as other:
        database.events.append_all([*TOLD, *COMMITTED])

        def rule(event: BaseModel) -> BaseModel:
            other.maintenance.compact(older_than=timedelta(0))
            return redacted(event)

        assert database.maintenance.redact(OF_THREAD, rule).events == 5
        assert [stored.sequence for stored in database.events.stream()] == [*range(1, 6), *range(8, 13)]
        assert SECRET not in str(database.events.replay_all()[1:])
        assert database.projections.verify() == []


def test_projections_that_are_behind_catch_up(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(TOLD)
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all(COMMITTED)
        assert database.maintenance.redact(OF_THREAD).events == 7
        assert database.projections.verify() == []


def test_a_durable_subscription_that_is_behind_reads_what_is_left(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(TOLD)
        database.maintenance.redact(OF_THREAD)
        with database.events.durable_subscription("mail", after=5) as subscription:
            assert next(iter(subscription)).event.delta == ""  # type: ignore[union-attr]


def test_names_in_git_are_not_redacted() -> None:
    branch = BranchCreated(thread_id=THREAD, name="tide-table")
    assert redacted(branch) is branch


def test_the_asynchronous_api_redacts_as_the_synchronous_one_does(migrated_lasting_url: URL) -> None:
    async def redact() -> tuple[Any, ...]:
        async with await AsyncDatabase.open(url=migrated_lasting_url) as database:
            query = await database.maintenance.of_project(PROJECT)
            planned = await database.maintenance.redact(query, dry_run=True)
            done = await database.maintenance.redact(query, by="ada")
            return query, planned, done, await database.maintenance.redactions(), await database.projections.verify()

    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*TOLD, *COMMITTED])
        expected = database.maintenance.of_project(PROJECT), database.maintenance.redact(OF_THREAD, dry_run=True)
    query, planned, done, acts, differences = asyncio.run(redact())
    assert query == expected[0]
    assert planned[:3] == done[:3] == (9, (), 12)
    assert expected[1].events == 7
    assert differences == []
    with Database.open(url=migrated_lasting_url) as database:
        assert database.maintenance.redactions() == acts
        assert SECRET not in str(database.events.replay_all())


def test_a_database_in_memory_is_redacted(open_empty_memory: Callable[..., Database]) -> None:
    database = open_empty_memory()
    database.events.append_all([*TOLD, *COMMITTED])
    assert database.maintenance.redact(OF_THREAD) == Redaction(7, (), 12, None)
    assert database.projections.verify() == []
