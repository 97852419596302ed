"""Projections and their tables are checked when a database is opened."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from helpers.word_count_projection import SCENE, Opener, WordCount
from sqlalchemy import (
    URL,
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
)

from peon.orchestration import (
    OrchestrationEvent,
)
from peon.persistence import (
    Database,
    Projection,
    Refusal,
    StoredEvent,
    schema,
)


def projection(of_name: str, *of_tables: Table) -> Projection:
    class Some(WordCount):
        name = of_name
        tables = of_tables

    return Some()


def table(name: str, *columns: Column[Any], metadata: MetaData | None = None, **options: Any) -> Table:
    key: Column[Any] = Column("id", Text, primary_key=True)
    return Table(name, metadata or MetaData(), *(columns or [key]), **options)


shared = MetaData()

UNFIT: dict[str, list[Projection]] = {
    "same name": [projection("a", table("a")), projection("a", table("b"))],
    "orchestration": [projection("orchestration", table("a"))],
    "tables": [projection("a")],
    "table of another: a": [projection("a", table("a")), projection("b", table("a"))],
    "table of another: events": [projection("a", table("events"))],
    "table of another: settings": [projection("a", table("settings"))],
    "refers to projection_threads.id": [
        projection("a", table("a", Column("id", ForeignKey(schema.projection_threads.c.id), primary_key=True)))
    ],
    "refers to nowhere.id": [projection("a", table("a", Column("id", ForeignKey("nowhere.id"), primary_key=True)))],
    "refers to b.id": [
        projection(
            "a",
            table("a", Column("id", ForeignKey(table("b", metadata=shared).c.id), primary_key=True), metadata=shared),
        ),
        projection("b", shared.tables["b"]),
    ],
    "more than one MetaData": [projection("a", table("a"), table("b"))],
    "has a schema": [projection("a", table("a", schema="elsewhere"))],
    "a.id counts by itself": [projection("a", table("a", Column("id", Integer, primary_key=True)))],
}


@pytest.mark.parametrize("message", list(UNFIT))
def test_tables_that_cannot_be_maintained_are_refused(open_empty_memory: Opener, message: str) -> None:
    engine = open_empty_memory(maintain_projections=False).engine

    with pytest.raises(ValueError, match=message):
        Database(engine, projections=UNFIT[message])


@pytest.mark.parametrize("unfit", [WordCount, [WordCount], ["word_count"], "word_count", None])
def test_anything_but_projections_is_refused(open_empty_memory: Opener, unfit: Any) -> None:
    engine = open_empty_memory(maintain_projections=False).engine

    with pytest.raises(TypeError, match="projection"):
        Database(engine, projections=unfit)


@pytest.mark.parametrize(
    "fit",
    [
        table("a", Column("id", Integer, primary_key=True, autoincrement=False)),
        table("a", Column("id", ForeignKey("a.id"), primary_key=True)),
        table("a", Column("id", Text, primary_key=True), Column("parent", ForeignKey("a.id"))),
    ],
)
def test_tables_that_can_be_maintained_are_accepted(open_empty_memory: Opener, fit: Table) -> None:
    engine = open_empty_memory(maintain_projections=False).engine

    assert "a" in repr(Database(engine, projections=[projection("a", fit)]).projections)


def applying(of_apply: Callable[[Connection, Sequence[StoredEvent[OrchestrationEvent]]], Any]) -> Projection:
    class Some(WordCount):
        name = "some"
        tables = (table("some"),)

        def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> Any:
            return of_apply(connection, events)

    return Some()


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (lambda connection, _: connection.rollback(), "ended the transaction"),
        (lambda connection, _: connection.commit(), "ended the transaction"),
        (lambda _, events: [Refusal(events[0].sequence - 1, "none of its events")], "was not given"),
        (lambda _, events: [Refusal(events[-1].sequence + 1, "none of its events")], "was not given"),
    ],
)
def test_the_error_says_what_apply_must_not_do(sqlite_url: URL, apply: Any, reason: str) -> None:
    database = Database.open(url=sqlite_url, projections=[applying(apply)])
    with database, pytest.raises(TypeError, match=reason):
        database.events.append_all(SCENE)


class VersionOfText(WordCount):
    version = "1"  # type: ignore[assignment]


class TablesOfText(WordCount):
    tables = ("words",)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("projections", "error", "reason"),
    [
        ([WordCount], TypeError, "give an instance"),
        ([object()], TypeError, "give an instance"),
        (WordCount(), TypeError, "a list of projections"),
        (None, TypeError, "a list of projections"),
        ([VersionOfText()], ValueError, "VersionOfText: its version is an integer"),
        ([TablesOfText()], ValueError, "TablesOfText: its tables are a tuple of Table"),
    ],
)
def test_the_error_for_an_invalid_projection_says_why(projections: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Database.open(url="sqlite://", projections=projections)
