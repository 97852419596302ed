"""An exception of a projection keeps its type, and its notes name the projection and the event."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

import pytest
from helpers.orchestration_scene import PROJECT, Opener, append_alone, project, renamed
from sqlalchemy import Column, Connection, MetaData, Table, Text, insert

from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database, Projection, StoredEvent, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase

names = Table("renames", MetaData(), Column("name", Text, primary_key=True))


class Renames(Projection):
    """Keeps the names of projects; fails at one of them."""

    name = "renames"
    version = 1
    tables: ClassVar[Sequence[Table]] = (names,)

    def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> None:
        for _, event, _ in events:
            if isinstance(event, ProjectRenamed):
                if event.name == "fails":
                    raise LookupError("from the projection")
                connection.execute(insert(names).values(name=event.name))


class RenamesAtOnce(Renames):
    """Looks at all events first, and writes then."""

    def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> None:
        found = [stored.event.name for stored in events if isinstance(stored.event, ProjectRenamed)]
        if "fails" in found:
            raise LookupError("from the projection")
        connection.execute(insert(names), [{"name": name} for name in found])


BATCH = [project(PROJECT), renamed("a"), renamed("fails"), renamed("b")]
AT_EVENT_3 = ["raised by projection renames at event 3 (ProjectRenamed)"]
IN_ALL_EVENTS = ["raised by projection renames in events 1 to 4"]


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.mark.parametrize(("kind", "expected"), [(Renames, AT_EVENT_3), (RenamesAtOnce, IN_ALL_EVENTS)])
class TestTheProjectionRaises:
    def test_in_an_append(self, open_empty: Opener, kind: type[Projection], expected: list[str]) -> None:
        database = open_empty(projections=[kind()])

        with pytest.raises(LookupError, match="from the projection") as caught:
            database.events.append_all(BATCH)

        assert notes(caught.value) == IN_ALL_EVENTS  # following them would take a twentieth of the time
        assert database.events.last_sequence() == 0

    def test_in_the_append_of_one_event(self, open_empty: Opener, kind: type[Projection], expected: list[str]) -> None:
        database = open_empty(projections=[kind()])
        database.events.append_all(BATCH[:2])

        with pytest.raises(LookupError) as caught:
            database.events.append_all(BATCH[2:3])

        assert notes(caught.value) == AT_EVENT_3

    def test_at_a_start_up(self, open_lasting: Opener, kind: type[Projection], expected: list[str]) -> None:
        database = open_lasting()
        database.events.append_all(BATCH)
        url = database.engine.url

        with pytest.raises(LookupError) as caught:
            Database.open(url=url, projections=[kind()])
        assert notes(caught.value) == expected

        async def open_for_an_event_loop() -> None:
            await AsyncDatabase.open(url=url, projections=[kind()])

        with pytest.raises(LookupError) as caught:
            asyncio.run(open_for_an_event_loop())
        assert notes(caught.value) == expected

    def test_in_a_rebuild(self, open_empty: Opener, kind: type[Projection], expected: list[str]) -> None:
        database = open_empty(projections=[kind()])
        append_alone(database, *BATCH)

        with pytest.raises(LookupError) as caught:
            database.projections.rebuild()

        assert notes(caught.value) == expected

    def test_in_a_verification(
        self, open_empty: Opener, monkeypatch: pytest.MonkeyPatch, kind: type[Projection], expected: list[str]
    ) -> None:
        database = open_empty(projections=[kind()])
        with monkeypatch.context() as patched:
            patched.setattr(kind, "apply", lambda *_: None)
            database.events.append_all(BATCH)

        with pytest.raises(LookupError) as caught:
            database.projections.verify()

        assert notes(caught.value) == expected


@pytest.mark.parametrize("kind", [Renames, RenamesAtOnce])
def test_an_error_of_the_database_is_named_too(open_empty: Opener, kind: type[Projection]) -> None:
    database = open_empty(projections=[kind()])
    database.events.append_all(BATCH[:2])

    with pytest.raises(StoreUnavailable) as caught:
        database.events.append_all([renamed("b"), renamed("a")])

    assert notes(caught.value) == ["raised by projection renames in events 3 to 4"]


def test_an_exception_object_that_is_raised_again_has_its_note_once(
    open_empty: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_empty(projections=[Renames()])
    error = LookupError("the same")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Renames, "apply", fail)
    for _ in range(2):
        with pytest.raises(LookupError):
            database.events.append_all(BATCH[:1])

    assert notes(error) == ["raised by projection renames at event 1 (ProjectCreated)"]
