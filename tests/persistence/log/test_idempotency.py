"""A repeated command is stored once, returns its stored events, and is never confused with another command."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from helpers.processes import PATIENCE, context, die
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import URL, event, insert

from peon.orchestration import OrchestrationEvent, ProjectCreated, ProjectRenamed, ThreadDeleted
from peon.persistence import (
    AppendCondition,
    CommandConflict,
    ConcurrencyError,
    Database,
    EventCodec,
    EventDecodeError,
    EventEncodeError,
    EventQuery,
    EventStore,
    ProjectionError,
)
from peon.persistence.backends import backend_of
from peon.persistence.log.idempotency import Receipt, add_receipt
from peon.persistence.schema import events as log

PROJECT = UUID(int=1)
STORED_AT = "2025-03-14T09:26:53.589793Z"


def renamed(name: str = "x", **fields: object) -> ProjectRenamed:
    return ProjectRenamed(project_id=PROJECT, name=name, **fields)


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_returns_the_stored_events(database: Database) -> None:
    command, batch = uuid4(), [renamed("a"), renamed("b")]
    stored = database.events.append_all(batch, command_id=command)
    database.events.append_all([renamed("between")])

    assert database.events.append_all(batch, command_id=command) == stored
    assert database.events.append_all(batch, command_id=str(command).upper()) == stored
    assert database.events.last_sequence() == 3


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_with_newly_created_events_is_the_same_command(database: Database) -> None:
    """The events of the repeat have another default `occurred_at`."""
    command = uuid4()
    stored = database.events.append_all([renamed()], command_id=command)

    assert database.events.append_all([renamed()], command_id=command) == stored


MOMENT = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("repeated", "reason"),
    [
        ([renamed("b", occurred_at=MOMENT)], r"event 0 \(ProjectRenamed\) has another name"),
        ([renamed("a", occurred_at=MOMENT.replace(year=2027))], "has another occurred_at"),
        ([], "has stored 1 event, and was now given 0"),
        ([renamed("a", occurred_at=MOMENT)] * 2, "and was now given 2"),
        ([ThreadDeleted(thread_id=PROJECT)], "was ProjectRenamed, and is ThreadDeleted"),
    ],
)
def test_the_same_identifier_with_other_events_is_a_conflict(
    database: Database, repeated: list[OrchestrationEvent], reason: str
) -> None:
    command = uuid4()
    database.events.append_all([renamed("a", occurred_at=MOMENT)], command_id=command)

    with pytest.raises(CommandConflict, match=reason) as caught:
        database.events.append_all(repeated, command_id=command)

    assert caught.value.command_id == command
    assert str(PROJECT) not in str(caught.value)
    assert database.events.last_sequence() == 1


def test_a_command_without_events_has_a_receipt_too(database: Database) -> None:
    command = uuid4()

    assert database.events.append_all([], command_id=command) == []
    assert database.events.append_all([], command_id=command) == []
    with pytest.raises(CommandConflict, match="stored 0 events"):
        database.events.append_all([renamed()], command_id=command)
    assert database.events.last_sequence() == 0


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_refused_command_leaves_no_receipt(database: Database) -> None:
    command = uuid4()
    database.events.append_all([renamed()])
    with pytest.raises(ConcurrencyError):
        database.events.append_all([renamed()], command_id=command, condition=AppendCondition(EventQuery(), 0))
    with pytest.raises(EventEncodeError):
        database.events.append_all(["no event"], command_id=command)  # type: ignore[list-item]
    with database.engine.connect() as connection:
        database.events.append_all([renamed()], command_id=command, connection=connection)
        connection.rollback()

    assert database.events.append_all([renamed("b")], command_id=command)[0].sequence == 2


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_does_not_check_its_condition_again(database: Database) -> None:
    command, condition = uuid4(), AppendCondition(EventQuery(project_id=PROJECT), after=0)
    stored = database.events.append_all([renamed()], command_id=command, condition=condition)

    assert database.events.append_all([renamed()], command_id=command, condition=condition) == stored


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_in_the_same_transaction_returns_the_stored_events(database: Database) -> None:
    command = uuid4()
    with database.engine.begin() as connection:
        stored = database.events.append_all([renamed()], command_id=command, connection=connection)
        assert database.events.append_all([renamed()], command_id=command, connection=connection) == stored

    assert database.events.append_all([renamed()], command_id=command) == stored


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_returns_a_large_batch_completely(database: Database) -> None:
    command, batch = uuid4(), [renamed(str(n)) for n in range(2_500)]
    database.events.append_all([renamed()])
    stored = database.events.append_all(batch, command_id=command)
    database.events.append_all([renamed()])

    assert database.events.append_all(batch, command_id=command) == stored


@pytest.mark.postgresql_too("locks")
def test_threads_that_send_one_command_at_once_store_it_once(database: Database) -> None:
    threads, rounds = 8, 20
    together = threading.Barrier(threads)

    def work(_: int) -> list[int]:
        answers = []
        for turn in range(rounds):
            together.wait()
            answers.append(database.events.append_all([renamed(str(turn))], command_id=UUID(int=turn))[0].sequence)
        return answers

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(work, range(threads)))
    assert all(each == answers[0] for each in answers)
    assert database.events.last_sequence() == rounds


@pytest.mark.parametrize("wrong", ["a command", 7])
def test_an_invalid_command_id_is_refused(database: Database, wrong: object) -> None:
    with pytest.raises((ValueError, TypeError), match="command_id is a UUID"):
        database.events.append_all([renamed()], command_id=wrong)  # type: ignore[arg-type]


@pytest.mark.postgresql_too("locks")
def test_projections_apply_a_command_once(url: URL, migrated: None) -> None:
    with Database.open(url=url) as database:
        command = uuid4()
        created = ProjectCreated(project_id=PROJECT, name="x", path="/")
        stored = database.events.append_all([created], command_id=command)
        with pytest.raises(ProjectionError):
            database.events.append_all([created])
        assert database.events.append_all([created], command_id=command) == stored
        assert database.projections.verify() == []


def append_and_die_before_the_answer(url: str, command: UUID) -> None:
    with Database.open(url=url) as database:
        append_all = database.events.append_all

        @event.listens_for(database.engine, "commit")
        def commit_and_die(connection: object) -> None:
            connection.connection.commit()  # type: ignore[attr-defined]
            die()

        append_all([ProjectCreated(project_id=PROJECT, name="x", path="/")], command_id=command)


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_retry_after_a_kill_between_commit_and_answer_stores_nothing_twice(migrated_lasting_url: URL) -> None:
    Database.open(url=migrated_lasting_url).close()
    command = uuid4()
    url = migrated_lasting_url.render_as_string(hide_password=False)
    process = context.Process(target=append_and_die_before_the_answer, args=(url, command))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -9

    with Database.open(url=migrated_lasting_url) as database:
        again = [ProjectCreated(project_id=PROJECT, name="x", path="/")]
        assert [s.sequence for s in database.events.append_all(again, command_id=command)] == [1]
        assert database.events.last_sequence() == 1
        assert database.projections.verify() == []


def repeat_together(barrier: Any, url: str, rounds: int, answers: Any, number: int) -> None:
    with Database.open(url=url) as database:
        for turn in range(rounds):
            created = ProjectCreated(project_id=UUID(int=turn), name="x", path="/")
            barrier.wait(PATIENCE)
            (stored,) = database.events.append_all([created], command_id=UUID(int=turn))
            answers[number * rounds + turn] = stored.sequence


@pytest.mark.postgresql_too("locks")
@pytest.mark.parametrize("rounds", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_that_send_one_command_at_once_store_it_once(migrated_lasting_url: URL, rounds: int) -> None:
    """Storing the command again would contradict the projections."""
    Database.open(url=migrated_lasting_url).close()
    count = 4
    barrier, answers = context.Barrier(count), context.Array("i", count * rounds)
    url = migrated_lasting_url.render_as_string(hide_password=False)
    processes = [
        context.Process(target=repeat_together, args=(barrier, url, rounds, answers, number)) for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)

    assert [process.exitcode for process in processes] == [0] * count
    assert list(answers) == [*range(1, rounds + 1)] * count
    with Database.open(url=migrated_lasting_url) as database:
        assert database.events.last_sequence() == rounds


@pytest.mark.postgresql_too("locks, and what concurrent transactions see")
def test_a_repeat_whose_event_cannot_be_read_does_not_fail_other_appends(database: Database) -> None:
    """The other appends share its transaction, which still commits."""
    command = uuid4()
    with database.engine.begin() as connection:
        connection.execute(
            insert(log), {"sequence": 1, "event_type": "Unknown", "payload": "{}", "stored_at": STORED_AT}
        )
        add_receipt(connection, command, Receipt(1, 1, STORED_AT))
    with pytest.raises(EventDecodeError, match=r"event 1 \(Unknown\)"):
        database.events.append_all([renamed()], command_id=command)

    appender = database.events._appender
    with database.engine.begin() as connection:
        requests = [appender.request([renamed()], None, identifier) for identifier in (command, uuid4())]
        unreadable, stored = appender.perform(backend_of(connection).join_append(connection), requests)
    assert isinstance(unreadable, EventDecodeError)
    assert [*database.events.stream(after=1)] == stored


class Noted(BaseModel):
    type: Literal["Noted"] = "Noted"
    items: list[int] = Field(default_factory=list)
    data: JsonValue = None


class Chosen(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    type: Literal["Chosen"] = "Chosen"
    numbers: frozenset[bool | int] = frozenset()
    groups: dict[UUID, list[set[int]]] = Field(default_factory=dict)
    raw: bytes = b""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Noted(items=[1, 2]), Noted()),
        (Noted(data={"ok": True}), Noted(data={"ok": 1})),
        (Noted(data=1), Noted(data=1.0)),
        (Noted(data={"a": [1]}), Noted(data={"a": [True]})),
        (Chosen(numbers=frozenset([1])), Chosen(numbers=frozenset([True]))),
    ],
)
def test_values_of_other_types_that_compare_equal_are_another_command(
    database: Database, first: Noted | Chosen, second: Noted | Chosen
) -> None:
    store = EventStore(database.engine, EventCodec(Noted | Chosen))
    command = uuid4()
    stored = store.append_all([first], command_id=command)
    with pytest.raises(CommandConflict):
        store.append_all([second], command_id=command)
    assert store.append_all([first], command_id=command) == stored
    store.close()


def test_another_order_of_a_set_is_the_same_command(database: Database) -> None:
    store = EventStore(database.engine, EventCodec(Chosen))
    command, orders = uuid4(), ([0, 8], [8, 0])
    first, second = (Chosen(numbers=order, groups={PROJECT: [order]}, raw=b"\xff") for order in orders)
    assert [*first.numbers] != [*second.numbers]
    stored = store.append_all([first], command_id=command)
    for same in (first, second):
        assert store.append_all([same], command_id=command) == stored
    for other in (Chosen(numbers=[0, 8], raw=b"\xff"), Chosen(numbers=[0], groups=first.groups, raw=b"\xff")):
        with pytest.raises(CommandConflict):
            store.append_all([other], command_id=command)
    store.close()


def test_another_order_of_keys_is_the_same_command(database: Database) -> None:
    store = EventStore(database.engine, EventCodec(Noted))
    command = uuid4()
    stored = store.append_all([Noted(data={"a": 1, "b": 2})], command_id=command)
    assert store.append_all([Noted(data={"b": 2, "a": 1})], command_id=command) == stored
    store.close()
