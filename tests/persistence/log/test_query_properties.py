"""Any query over any log gives what a filter in Python gives, and a query that can match nothing is refused."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from helpers.conditions import conflict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from sqlalchemy import URL

from peon.persistence import AppendCondition, EventCodec, EventQuery, EventStore, create_engine
from peon.persistence.log import tag_index, tag_walk


class Enrolled(BaseModel):
    type: Literal["Enrolled"] = "Enrolled"
    student: str
    courses: list[str]


class Moved(BaseModel):
    type: Literal["Moved"] = "Moved"
    student: str
    courses: str | tuple[str, ...] | None


class Closed(BaseModel):
    type: Literal["Closed"] = "Closed"
    courses: str
    room: int


Event = Enrolled | Moved | Closed
CODEC: EventCodec[Event] = EventCodec(
    Annotated[Event, Field(discriminator="type")], tags=["student", "courses", "room"]
)

LETTERS = st.sampled_from("abc")
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Enrolled, student=LETTERS, courses=st.lists(LETTERS, max_size=3)),
    st.builds(Moved, student=LETTERS, courses=st.none() | LETTERS | st.tuples(LETTERS, LETTERS)),
    st.builds(Closed, courses=LETTERS, room=st.integers(0, 1)),
)
VALUES = LETTERS | st.lists(LETTERS, min_size=1, max_size=2)
ITEMS = st.builds(
    EventQuery,
    event_types=st.none() | st.lists(st.sampled_from(["Enrolled", "Moved", "Closed"]), min_size=1, max_size=3),
    tags=st.fixed_dictionaries({}, optional={"student": LETTERS, "courses": VALUES, "room": st.integers(0, 1)}),
)


def asked(item: EventQuery) -> dict[str, set[Any]]:
    return {name: set(value) if isinstance(value, tuple) else {value} for name, value in item.tags}  # type: ignore[misc]


def is_match(item: EventQuery, event: Event) -> bool:
    def values(name: str) -> set[Any]:
        value = getattr(event, name, None)
        return set(value) if isinstance(value, list | tuple) else {value}

    of_type = item.event_types is None or event.type in item.event_types
    return of_type and all(wanted <= values(name) for name, wanted in asked(item).items())


def is_possible(item: EventQuery) -> bool:
    one, many = 1, 9
    values = {
        "Enrolled": {"student": one, "courses": many},
        "Moved": {"student": one, "courses": many},
        "Closed": {"courses": one, "room": one},
    }
    types = item.event_types or values
    return any(all(len(v) <= values[t].get(name, 0) for name, v in asked(item).items()) for t in types)


@pytest.fixture
def store(migrated_lasting_url: URL) -> Iterator[EventStore[Event]]:
    engine = create_engine(migrated_lasting_url)
    store = EventStore(engine, CODEC)
    yield store
    store.close()
    engine.dispose()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.lists(EVENTS, max_size=12),
    items=st.lists(ITEMS, min_size=1, max_size=3),
    back=st.integers(0, 40),
    tail=st.sampled_from([0, 5, 1_000]),
    data=st.data(),
)
def test_a_query_gives_what_a_filter_gives(
    store: EventStore[Event],
    monkeypatch: pytest.MonkeyPatch,
    batch: list[Event],
    items: list[EventQuery],
    back: int,
    tail: int,
    data: st.DataObject,
) -> None:
    store.append_all(batch)
    query = EventQuery.any_of(*items)
    after = max(0, store.last_sequence() - back)
    if not all(map(is_possible, items)):
        for ask in (
            lambda: store.stream(query=query),
            lambda: store.append_all([], condition=AppendCondition(query, 0)),
        ):
            with pytest.raises(ValueError, match="none can match"):
                ask()
        return
    expected = [stored for stored in store.stream(after=after) if any(is_match(item, stored.event) for item in items)]

    with monkeypatch.context() as patched:
        patched.setattr(tag_index, "TAIL_EVENTS", tail)
        patched.setattr(tag_index, "PAGE_MATCHES", data.draw(st.sampled_from([2, 250])))
        patched.setattr(tag_index, "LOCKED_ROUNDS", 3)
        patched.setattr(tag_walk, "RANGE_ENTRIES", data.draw(st.sampled_from([2, 500])))
        assert list(store.stream(query=query, after=after)) == expected
        assert list(store.stream(query=query, after=after, limit=3)) == expected[:3]
        assert list(store.stream(query=query, after=after, newest_first=True)) == expected[::-1]
        assert conflict(store, AppendCondition(query, after)) == next((stored.sequence for stored in expected), None)
        assert list(store.stream(query=query, after=after)) == expected
