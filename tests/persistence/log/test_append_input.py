"""A batch with anything but events is refused as a whole; events may come from any iterable."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.hard_events import ONE, Renamed, Stranger, assert_refused, assert_unharmed, renamed
from helpers.secret import SECRET, assert_secret_is_kept

from peon.orchestration import (
    OrchestrationEvent,
    ProjectRenamed,
    TextContent,
)
from peon.persistence import Database, EventEncodeError


class RenamedAndMore(ProjectRenamed):
    more: str = SECRET


NOT_EVENTS: dict[str, tuple[Any, str]] = {
    "text": (SECRET, "it is not an event"),
    "None": (None, "it is not an event"),
    "number": (5, "it is not an event"),
    "dict": ({"type": "ProjectRenamed", "project_id": str(ONE), "name": SECRET}, "it is not an event"),
    "payload": (renamed(SECRET).model_dump_json(), "it is not an event"),
    "list of events": ([renamed(SECRET)], "it is not an event"),
    "class of an event": (ProjectRenamed, "it is not an event"),
    "another model": (Stranger(), "its class is not in the codec's union of events"),
    "value of the domain": (TextContent(text=SECRET), "its class is not in the codec's union of events"),
    "subclass of an event": (Renamed(project_id=ONE, name=SECRET), "its class is not in the codec's union of events"),
    "subclass that has more": (
        RenamedAndMore(project_id=ONE, name="x"),
        "its class is not in the codec's union of events",
    ),
}


@pytest.mark.parametrize(("thing", "reason"), NOT_EVENTS.values(), ids=NOT_EVENTS)
@pytest.mark.parametrize("index", [0, 2])
def test_a_batch_with_anything_but_events_is_refused_as_a_whole(
    memory: Database, thing: Any, reason: str, index: int
) -> None:
    memory.events.append_all([renamed()])
    batch: list[Any] = [renamed(), renamed(), renamed()]
    batch[index] = thing

    assert_refused(memory, *batch, index=index, reason=reason)


def test_the_error_names_the_first_of_two_wrong_events(memory: Database) -> None:
    assert_refused(memory, renamed(), None, SECRET, index=1)


def test_a_single_event_instead_of_a_list_is_refused(database: Database) -> None:
    with pytest.raises(TypeError, match=r"append_all takes a list of events: \[ProjectRenamed\(…\)\]") as caught:
        database.events.append_all(renamed(SECRET))  # type: ignore[arg-type]

    assert_secret_is_kept(caught.value)
    assert_unharmed(database, [])


@pytest.mark.parametrize("batch", [None, 5, ProjectRenamed])
def test_a_value_that_is_not_iterable_is_refused(memory: Database, batch: Any) -> None:
    with pytest.raises(TypeError):
        memory.events.append_all(batch)

    assert_unharmed(memory, [])


@pytest.mark.parametrize("batch", [SECRET, SECRET.encode(), {"type": SECRET}])
def test_a_list_of_something_else_is_refused(memory: Database, batch: Any) -> None:
    with pytest.raises(EventEncodeError, match="it is not an event") as caught:
        memory.events.append_all(batch)

    assert (caught.value.index, caught.value.event_type) == (0, type(next(iter(batch))).__name__)
    assert_secret_is_kept(caught.value)
    assert_unharmed(memory, [])


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda events: (event for event in events)])
def test_events_may_come_from_any_iterable(database: Database, kind: Callable[[list[Any]], Any]) -> None:
    events = [renamed("a"), renamed("b"), renamed("c")]

    stored = database.events.append_all(kind(events))

    assert [(s.sequence, s.event) for s in stored] == [(1, events[0]), (2, events[1]), (3, events[2])]
    assert database.events.replay_all() == stored


def test_a_generator_that_fails_half_way_stores_nothing(database: Database) -> None:
    def generate() -> Iterator[OrchestrationEvent]:
        yield renamed()
        raise LookupError("half-way")

    with pytest.raises(LookupError, match="half-way"):
        database.events.append_all(generate())

    assert_unharmed(database, [])


def test_a_generator_may_read_and_append_to_the_log(database: Database) -> None:
    def generate() -> Iterator[OrchestrationEvent]:
        for name in ("a", "b"):
            database.events.append_all([renamed(name)])
            yield renamed(f"{len(database.events.replay_all())} {name}")

    stored = database.events.append_all(generate())

    assert [s.sequence for s in stored] == [3, 4]
    assert [s.event.name for s in database.events.replay_all()] == ["a", "b", "1 a", "2 b"]  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_batch_of_100_000_events_is_stored_in_one_transaction(database: Database) -> None:
    count = 100_000
    before = database.events.append_all([renamed()])

    stored = database.events.append_all([renamed(f"name {n}") for n in range(count)])

    assert [s.sequence for s in stored] == list(range(2, count + 2))
    assert database.events.replay_all() == before + stored


def test_a_batch_of_100_000_events_whose_last_one_is_wrong_stores_nothing(memory: Database) -> None:
    batch: list[Any] = [renamed()] * 100_000

    assert_refused(memory, *batch, None, index=100_000)
