"""Queries: which events they match, and which queries are refused."""

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from helpers.conditions import OTHER, PROJECT, THREAD, conflict, padding
from pydantic import BaseModel, Field
from sqlalchemy import insert

from peon import UndecodableEvent
from peon.orchestration import (
    ProjectRenamed,
    ThreadDeleted,
)
from peon.persistence import (
    AppendCondition,
    ConcurrencyError,
    Database,
    EventCodec,
    EventQuery,
    EventStore,
)
from peon.persistence.log import pages, tag_index
from peon.persistence.schema import events as log


class Deposited(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    account: str
    branch: int | None = None
    rate: float | None = None


class Opened(BaseModel):
    type: Literal["Opened"] = "Opened"
    account: str


AccountEvent = Annotated[Deposited | Opened, Field(discriminator="type")]
ACCOUNTS: EventCodec[Any] = EventCodec(AccountEvent, tags=["account", "branch"])


def test_fields_of_a_custom_union_can_be_queried_as_tags(database: Database, read: None) -> None:
    store = EventStore(database.engine, ACCOUNTS)
    names = ["7", "é\0", "x" * 3_000, "x" * 3_001, 'q"uote', ""]
    stored = [store.append_all([Deposited(account=name, branch=7)])[0] for name in names]
    opened = store.append_all([Opened(account="7")])

    for name, deposited in zip(names[1:], stored[1:], strict=True):
        assert list(store.stream(query=EventQuery(tags={"account": name}))) == [deposited]
    assert list(store.stream(query=EventQuery(tags={"account": 7}))) == [stored[0], *opened]
    assert list(store.stream(query=EventQuery(tags={"branch": 7, "account": "7"}))) == [stored[0]]
    assert list(store.stream(query=EventQuery(tags={"branch": 8}))) == []
    with pytest.raises(ConcurrencyError):
        store.append_all([Opened(account="7")], condition=AppendCondition(EventQuery(tags={"account": "7"}), 1))
    store.close()


class Posted(BaseModel):
    type: Literal["Posted"] = "Posted"
    thread_id: str


def test_an_identifier_in_a_text_field_matches_in_any_form(database: Database, read: None) -> None:
    store = EventStore(database.engine, EventCodec(Posted, tags=["thread_id"]))
    thread = uuid4()
    forms = [thread.hex, str(thread), str(thread).upper()]
    stored = store.append_all([Posted(thread_id=form) for form in [*forms, "no UUID"]])

    for form in [*forms, thread]:
        for query in (EventQuery(thread_id=form), EventQuery(tags={"thread_id": form})):
            assert list(store.stream(query=query)) == stored[:3]
            with pytest.raises(ConcurrencyError):
                store.append_all([], condition=AppendCondition(query, after=2))
    assert list(store.stream(query=EventQuery(tags={"thread_id": "no UUID"}))) == stored[3:]
    store.close()


def test_undecodable_rows_match_by_type_only(database: Database, read: None) -> None:
    payloads = ["{", "[]", '{"thread_id": null}', f'{{"thread_id": {{"id": "{THREAD}"}}}}', '{"thread_id": true}']
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            [{"sequence": n, "event_type": "T", "payload": p, "stored_at": ""} for n, p in enumerate(payloads, 1)],
        )

    assert list(database.events.stream(query=EventQuery(thread_id=THREAD))) == []
    kept = database.events.stream(query=EventQuery(event_types=["T"]), undecodable=UndecodableEvent)
    assert [s.sequence for s in kept] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (lambda _: EventQuery(event_types="ThreadDeleted"), TypeError, "a list of names"),
        (lambda _: EventQuery(thread_id="a thread"), ValueError, "thread_id is a UUID"),
        (lambda _: EventQuery(tags={"thread_id": 1.5}), TypeError, "tag thread_id is text, a number or a UUID"),
        (lambda _: EventQuery(tags={"thread_id": True}), TypeError, "not bool"),
        (lambda _: EventQuery(tags=None), TypeError, "as a dictionary"),
        (lambda _: EventQuery(thread_id=THREAD, tags={"thread_id": OTHER}), ValueError, "given twice"),
        (lambda _: EventQuery(event_types=["A"], tags={"type": "B"}), ValueError, "type was given twice"),
        (lambda _: AppendCondition(EventQuery(), -1), ValueError, "from 0 on"),
        (lambda _: AppendCondition(EventQuery(), float("nan")), TypeError, "is a sequence"),
        (lambda d: d.events.stream(query="everything"), TypeError, "is an EventQuery"),
        (lambda d: d.events.stream(event_types=5), TypeError, "a list of names"),
        (lambda d: d.events.stream(limit=1.5), TypeError, "limit is a number"),
        (lambda _: AppendCondition("everything", 0), TypeError, "is an EventQuery"),
        (
            lambda d: d.events.stream(query=EventQuery(tags={"name": "x"})),
            ValueError,
            "name is not a tag",
        ),
        (lambda d: d.events.stream(query=EventQuery(), event_types=["T"]), ValueError, "name the types in the query"),
        (lambda d: d.events.append_all([], condition=EventQuery()), TypeError, "is an AppendCondition"),
        (lambda _: EventCodec(AccountEvent, tags="account"), TypeError, "a list of names"),
        (lambda _: EventCodec(AccountEvent, tags=["acount"]), ValueError, "'acount' is a field of no member"),
        (lambda _: EventCodec(AccountEvent, tags=["rate"]), ValueError, "'rate' is a field of neither text"),
    ],
)
def test_a_wrong_query_is_refused(
    database: Database, wrong: Callable[[Database], object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        wrong(database)


@pytest.mark.postgresql_too("the index of tags")
def test_a_query_finds_all_large_events(database: Database, read: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CHARACTERS", 10_000)
    for number in range(30):
        database.events.append_all([ProjectRenamed(project_id=PROJECT, name=f"{number} " + "x" * 1_000), *padding(2)])
    query = EventQuery(project_id=PROJECT)
    assert list(database.events.stream(query=query)) == database.events.replay_all()[::3]
    with database.events.subscribe(query=query) as subscription:
        assert [next(subscription).sequence for _ in range(30)] == [*range(1, 91, 3)]


class Colour(str, Enum):  # noqa: UP042 - unlike StrEnum, its str() is not its value
    RED = "red"


class Painted(BaseModel):
    type: Literal["Painted"] = "Painted"
    colour: Colour


@pytest.mark.postgresql_too("the index of tags")
def test_a_query_keeps_a_copy_of_its_arguments(database: Database, read: None) -> None:
    wanted = ["ThreadDeleted"]
    generated = EventQuery(event_types=(name for name in wanted))
    listed = EventQuery(event_types=wanted)
    values = {"thread_id": THREAD}
    tagged = EventQuery(tags=values)
    wanted.clear()
    values.clear()
    database.events.append_all([ThreadDeleted(thread_id=THREAD)])

    for query in (generated, listed, tagged):
        for _ in range(2):
            assert conflict(database.events, AppendCondition(query, after=0)) == 1
        assert hash(query) == hash(EventQuery(event_types=query.event_types, tags=query.tags))
    assert len(list(database.events.stream(event_types=iter(["ThreadDeleted"])))) == 1


def test_a_member_of_an_enumeration_means_its_value(database: Database, read: None) -> None:
    codec: EventCodec[Painted] = EventCodec(Painted, tags=["colour"])
    store = EventStore(database.engine, codec)
    store.append_all([Painted(colour=Colour.RED)])
    for value in (Colour.RED, "red"):
        with pytest.raises(ConcurrencyError):
            store.append_all([], condition=AppendCondition(EventQuery(tags={"colour": value}), after=0))
    store.append_all([], condition=AppendCondition(EventQuery(tags={"colour": "\ud800"}), after=0))
    store.close()


class Labelled(BaseModel):
    type: Literal["Labelled"] = "Labelled"
    label: str | list[str | int]


class LabelledOnce(BaseModel):
    type: Literal["Labelled"] = "Labelled"
    label: str


LABELLED: EventCodec[Labelled] = EventCodec(Labelled, tags=["label"])


@pytest.mark.postgresql_too("the index of tags")
def test_an_event_has_each_value_of_a_list_as_its_tag(database: Database, read: None) -> None:
    store = EventStore(database.engine, LABELLED)
    labels: list[Any] = [["a", "b"], "a", [], [7, "7", "b", "a"], ["x" * 3_000], ["c", "c"]]
    stored = store.append_all([Labelled(label=label) for label in labels])

    def found(*values: str | int) -> list[int]:
        query = EventQuery(tags={"label": values})
        sequences = [each.sequence for each in store.stream(query=query)]
        assert conflict(store, AppendCondition(query, after=0)) == next(iter(sequences), None)
        return sequences

    assert found("a") == [1, 2, 4]
    assert found("a", "b") == [1, 4]
    assert found("a", "b", 7) == found("7", "a") == [4]
    assert found("a", "c") == []
    assert found("c") == [6]
    assert found("x" * 3_000) == [5]
    either = EventQuery.any_of(EventQuery(tags={"label": "c"}), EventQuery(tags={"label": ["b", "a"]}))
    assert list(store.stream(query=either)) == [stored[0], stored[3], stored[5]]
    store.close()


@pytest.mark.postgresql_too("the index of tags")
def test_a_tag_that_becomes_a_list_is_indexed_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was filled when an event had one value lacks the values of lists before its position."""
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    store = EventStore(database.engine, LABELLED)
    stored = store.append_all([Labelled(label="a"), Labelled(label=["a", "b"])])
    before: EventStore[LabelledOnce] = EventStore(database.engine, EventCodec(LabelledOnce, tags=["label"]))
    query = EventQuery(tags={"label": "a"})
    assert [each.sequence for each in before.stream(query=query, undecodable=UndecodableEvent)] == [1]

    assert list(store.stream(query=query)) == stored
    assert conflict(store, AppendCondition(query, after=1)) == 2
    assert [each.sequence for each in before.stream(query=query)] == [1]
    store.close()
    before.close()
