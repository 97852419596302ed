"""Compiled statements skip SQLAlchemy's execution context if no listener is registered, and nothing else changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, bindparam, column, event, select, table
from sqlalchemy.exc import StatementError

from peon.persistence import Database
from peon.persistence.backends.compiled import CompiledQuery, insert_into
from peon.persistence.schema import settings

INSERT = insert_into(settings)
BY_KEY = CompiledQuery(select(settings.c.value).where(settings.c.key == bindparam("of_key")), ["of_key"])
OF_MISSING_TABLE = CompiledQuery(select(column("a")).select_from(table("missing")), [])


@contextmanager
def observed(engine: Engine) -> Iterator[None]:
    def ignore(*_: object) -> None:
        pass

    event.listen(engine, "before_cursor_execute", ignore)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", ignore)


def listen(target: Any, name: str, statements: list[str]) -> Callable[[], None]:
    """Notes the statements of an event; returns what ends that."""

    def note(*arguments: Any) -> None:
        statements.append(next(argument for argument in arguments if isinstance(argument, str)))

    event.listen(target, name, note)
    return lambda: event.remove(target, name, note)


@pytest.mark.parametrize(
    ("name", "of_connection"),
    [
        ("before_cursor_execute", False),
        ("before_cursor_execute", True),
        ("after_cursor_execute", False),
        ("after_cursor_execute", True),
    ],
)
def test_a_listener_sees_each_statement_from_then_on(database: Database, name: str, of_connection: bool) -> None:
    statements: list[str] = []
    with database.engine.begin() as connection:
        INSERT.run(connection, [("a", "1")])
        end = listen(connection if of_connection else database.engine, name, statements)
        INSERT.run(connection, [("b", "2")])
        INSERT.run(connection, [("c", "3"), ("d", "4")])
        BY_KEY.rows(connection, "c")
        if not of_connection:  # SQLAlchemy offers no way to remove that one
            end()
            INSERT.run(connection, [("e", "5")])

    assert [statement.split()[0] for statement in statements] == ["INSERT", "INSERT", "SELECT"]


def test_a_listener_of_all_engines_sees_each_statement(database: Database) -> None:
    statements: list[str] = []
    end = listen(Engine, "before_cursor_execute", statements)
    try:
        with database.engine.begin() as connection:
            INSERT.run(connection, [("a", "1")])
    finally:
        end()

    assert [statement for statement in statements if statement.startswith("INSERT INTO settings")]


@pytest.mark.parametrize(("name", "expected"), [("do_execute", ["SELECT"]), ("do_executemany", ["INSERT"])])
def test_a_listener_that_executes_statements_itself_is_called(
    database: Database, name: str, expected: list[str]
) -> None:
    statements: list[str] = []
    end = listen(database.engine, name, statements)
    try:
        with database.engine.begin() as connection:
            INSERT.run(connection, [("a", "1"), ("b", "2")])
            BY_KEY.rows(connection, "a")
    finally:
        end()

    assert [statement.split()[0] for statement in statements if "settings" in statement] == expected


def violate_the_key(connection: Connection) -> None:
    INSERT.run(connection, [("a", "1")])


def violate_the_key_among_several(connection: Connection) -> None:
    INSERT.run(connection, [("b", "1"), ("a", "1")])


def read_a_missing_table(connection: Connection) -> None:
    OF_MISSING_TABLE.rows(connection)


def store_a_lone_surrogate(connection: Connection) -> None:
    INSERT.run(connection, [("b", "\ud800")])


def use_a_savepoint_that_is_over(connection: Connection) -> None:
    with connection.begin_nested() as savepoint:
        savepoint.rollback()
        INSERT.run(connection, [("b", "1")])


def use_a_savepoint_that_could_not_be_released(connection: Connection) -> None:
    savepoint = connection.begin_nested()
    connection.exec_driver_sql("RELEASE SAVEPOINT sa_savepoint_1")
    with pytest.raises(StatementError):
        savepoint.commit()
    INSERT.run(connection, [("b", "1")])


def use_a_connection_that_is_closed(connection: Connection) -> None:
    connection.close()
    INSERT.run(connection, [("b", "1")])


def use_a_lost_connection(connection: Connection) -> None:
    connection.invalidate()
    INSERT.run(connection, [("b", "1")])


FAULTS = [
    violate_the_key,
    violate_the_key_among_several,
    read_a_missing_table,
    store_a_lone_surrogate,
    use_a_savepoint_that_is_over,
    use_a_savepoint_that_could_not_be_released,
    use_a_connection_that_is_closed,
    use_a_lost_connection,
]


def outcome(database: Database, fault: Callable[[Connection], None]) -> list[object]:
    """Returns what can be seen of a fault, and of the connection afterwards."""
    with database.engine.connect() as connection:
        connection.begin()
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - the test compares it
                fault(connection)
            error = caught.value
            seen: list[object] = [type(error), connection.invalidated, connection.closed, connection.in_transaction()]
            if isinstance(error, StatementError):
                seen += [type(error.orig), str(error.orig), error.statement]
        finally:
            connection.rollback()
        return seen


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_are_those_of_an_observed_statement(
    migrated_lasting_url: URL, fault: Callable[[Connection], None]
) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.settings.set("a", 1)
        with observed(database.engine):
            expected = outcome(database, fault)
        assert outcome(database, fault) == expected


class Interrupts:
    """A parameter that raises what a signal handler may raise in the middle of a statement."""

    def __conform__(self, _: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_observed", [True, False])
def test_an_interrupted_statement_gives_its_connection_up(migrated_sqlite_url: URL, is_observed: bool) -> None:
    with Database.open(url=migrated_sqlite_url) as database, database.engine.connect() as connection:
        connection.begin()
        if is_observed:
            listen(connection, "before_cursor_execute", [])
        with pytest.raises(KeyboardInterrupt):
            INSERT.run(connection, [("a", Interrupts())])
        assert connection.invalidated
