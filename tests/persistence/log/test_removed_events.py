"""A repeated command whose events were removed by hand is never answered with other events."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text

from peon.orchestration import ProjectRenamed
from peon.persistence import AppendCondition, CommandEventsRemoved, Database, EventQuery
from peon.persistence.backends import backend_of
from peon.persistence.log import pages

PROJECT = UUID(int=1)


def renamed(name: str = "x") -> ProjectRenamed:
    return ProjectRenamed(project_id=PROJECT, name=name)


def remove(database: Database, *sequences: int) -> None:
    """Removes events as docs/how-to/remove-an-event.md says."""
    with database.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            trigger = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'events_refuse_delete'"))
            connection.execute(text("DROP TRIGGER events_refuse_delete"))
            delete(connection, sequences)
            connection.execute(text(str(trigger)))
        else:
            connection.execute(text("ALTER TABLE events DISABLE TRIGGER events_refuse_change"))
            delete(connection, sequences)
            connection.execute(text("ALTER TABLE events ENABLE TRIGGER events_refuse_change"))


def delete(connection: Connection, sequences: tuple[int, ...]) -> None:
    for sequence in sequences:
        connection.execute(text("DELETE FROM events WHERE sequence = :sequence"), {"sequence": sequence})


def repeat(database: Database, events: list[Any], command: UUID) -> CommandEventsRemoved:
    last = database.events.last_sequence()
    with pytest.raises(CommandEventsRemoved) as caught:
        database.events.append_all(events, command_id=command)
    assert caught.value.command_id == command
    assert str(command) in str(caught.value)
    assert database.events.last_sequence() == last
    return caught.value


def test_a_repeated_command_whose_only_event_was_removed_is_refused(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()], command_id=command)
    database.events.append_all([renamed()])
    remove(database, 1)
    error = repeat(database, [renamed()], command)
    assert (error.removed, error.events) == (1, 1)


@pytest.mark.parametrize("removed", [[2], [3], [4], [2, 4], [2, 3, 4]])
@pytest.mark.parametrize("page_events", [2, 1_000])
def test_the_error_says_how_many_events_of_the_command_were_removed(
    database: Database, monkeypatch: pytest.MonkeyPatch, removed: list[int], page_events: int
) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", page_events)
    command, batch = uuid4(), [renamed(), renamed(), renamed()]
    database.events.append_all([renamed()])
    database.events.append_all(batch, command_id=command)
    database.events.append_all([renamed()] * 5)
    remove(database, *removed)
    error = repeat(database, batch, command)
    assert (error.removed, error.events) == (len(removed), 3)
    assert f"({len(removed)} of 3)" in str(error)


def test_commands_before_and_after_a_gap_return_their_events(database: Database) -> None:
    commands = [uuid4() for _ in range(3)]
    stored = [database.events.append_all([renamed(), renamed()], command_id=command) for command in commands]
    remove(database, 3)
    assert database.events.append_all([renamed(), renamed()], command_id=commands[0]) == stored[0]
    assert database.events.append_all([renamed(), renamed()], command_id=commands[2]) == stored[2]


def test_a_removed_last_event_is_not_taken_for_the_next_event_with_its_number(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()], command_id=command)
    remove(database, 1)
    database.events.append_all([renamed()])
    repeat(database, [renamed()], command)


def test_a_repeat_in_a_transaction_of_the_caller_is_refused_too(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()], command_id=command)
    remove(database, 1)
    with database.engine.begin() as connection:
        with pytest.raises(CommandEventsRemoved):
            database.events.append_all([renamed()], command_id=command, connection=connection)
        (stored,) = database.events.append_all([renamed("y")], connection=connection)
    assert [each.sequence for each in database.events.replay_all()] == [stored.sequence]


def test_a_refused_repeat_does_not_fail_appends_in_the_same_transaction(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()], command_id=command)
    remove(database, 1)
    appender = database.events._appender
    with database.engine.begin() as connection:
        requests = [appender.request([renamed()], None, identifier) for identifier in (command, uuid4())]
        refused, stored = appender.perform(backend_of(connection).join_append(connection), requests)
    assert isinstance(refused, CommandEventsRemoved)
    assert database.events.replay_all() == stored


def test_a_command_whose_receipt_was_deleted_is_carried_out_again(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()], command_id=command)
    remove(database, 1)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM command_receipts WHERE command_id = :id"), {"id": str(command)})
    (stored,) = database.events.append_all([renamed()], command_id=command)
    assert database.events.append_all([renamed()], command_id=command) == [stored]


def test_a_command_without_events_can_be_repeated_after_a_removal(database: Database) -> None:
    command = uuid4()
    condition = AppendCondition(EventQuery(project_id=PROJECT), after=0)
    assert database.events.append_all([], command_id=command, condition=condition) == []
    database.events.append_all([renamed()])
    remove(database, 1)
    assert database.events.append_all([], command_id=command, condition=condition) == []
