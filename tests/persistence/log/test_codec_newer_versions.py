"""A program does not read a payload of a newer version as its own."""

from typing import Any, Literal
from uuid import UUID

import pytest
from helpers.secret import SECRET
from helpers.tide_events import STORED_AT, decode_error
from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert

from peon.orchestration import Event
from peon.orchestration.model import require_intact
from peon.persistence import Database, EventCodec, EventDecodeError, EventEncodeError, EventStore, UndecodableEvent
from peon.persistence.schema import events as log


class Ignoring(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    amount: int


class Allowing(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: Literal["Deposited"] = "Deposited"
    amount: int


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["Deposited"] = "Deposited"
    amount: int


class FixedAtOne(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    schema_version: Literal[1] = 1
    amount: int


class AnyNumber(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    schema_version: int = 1
    amount: int


class SeveralNumbers(BaseModel):
    type: Literal["Deposited"] = "Deposited"
    schema_version: Literal[1, 2] = 1
    amount: int


VERSION_ONE = [Ignoring, Allowing, Forbidding, FixedAtOne, AnyNumber, SeveralNumbers]
NEWER = f'{{"type":"Deposited","schema_version":2,"amount":30000,"by":"{SECRET}"}}'
WRITTEN_BY_A_NEWER_PROGRAM = "it is of version 2, and this program knows version 1"

every_model = pytest.mark.parametrize("model", VERSION_ONE)


@every_model
def test_a_payload_of_a_newer_version_is_refused(model: type[BaseModel]) -> None:
    assert WRITTEN_BY_A_NEWER_PROGRAM in decode_error(EventCodec(model), "Deposited", NEWER).reason


@every_model
@pytest.mark.parametrize("version", ['"2"', "2.0", "null", "[2]", "0"])
def test_a_payload_of_another_version_is_refused(model: type[BaseModel], version: str) -> None:
    payload = f'{{"type":"Deposited","schema_version":{version},"amount":1}}'
    decode_error(EventCodec(model), "Deposited", payload)


@pytest.mark.parametrize("model", [Ignoring, Allowing, FixedAtOne, AnyNumber, SeveralNumbers])
def test_a_payload_that_names_version_one_is_read(model: type[BaseModel]) -> None:
    event: Any = EventCodec(model).decode(1, "Deposited", '{"type":"Deposited","schema_version":1,"amount":5}')
    assert event.amount == 5


@every_model
def test_a_payload_without_a_version_is_read(model: type[BaseModel]) -> None:
    event: Any = EventCodec(model).decode(1, "Deposited", '{"type":"Deposited","amount":5}')
    assert event.amount == 5


def test_an_older_program_stops_at_the_newer_event(database: Database) -> None:
    row = {"event_type": "Deposited", "stored_at": STORED_AT}
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            [
                {"sequence": 1, "payload": '{"type":"Deposited","amount":300}', **row},
                {"sequence": 2, "payload": NEWER, **row},
            ],
        )
    store: EventStore[Ignoring] = EventStore(database.engine, EventCodec(Ignoring))

    stream = store.stream()
    assert next(stream).event == Ignoring(amount=300)
    with pytest.raises(EventDecodeError, match=WRITTEN_BY_A_NEWER_PROGRAM):
        next(stream)
    kept = list(store.stream(undecodable=UndecodableEvent))[1].event
    assert isinstance(kept, UndecodableEvent)
    assert kept.payload == NEWER
    store.close()


class Noted(BaseModel):
    type: Literal["Noted"] = "Noted"
    text: str
    fields: dict[str, int]


def test_the_word_in_a_value_or_a_nested_key_is_not_a_version(memory: Database) -> None:
    store: EventStore[Noted] = EventStore(memory.engine, EventCodec(Noted))
    event = Noted(text='"schema_version"', fields={"schema_version": 2})
    store.append_all([event])
    assert store.replay_all()[0].event == event
    store.close()


@pytest.mark.parametrize("model", [AnyNumber, SeveralNumbers])
def test_an_event_with_the_number_of_another_version_is_not_stored(memory: Database, model: Any) -> None:
    store: EventStore[Any] = EventStore(memory.engine, EventCodec(model))
    with pytest.raises(EventEncodeError, match="version 2"):
        store.append_all([model(schema_version=2, amount=1)])
    assert store.last_sequence() == 0
    store.close()


def test_an_event_with_an_additional_version_is_not_stored(memory: Database) -> None:
    store: EventStore[Allowing] = EventStore(memory.engine, EventCodec(Allowing))
    with pytest.raises(EventEncodeError, match="version 2"):
        store.append_all([Allowing(amount=1, schema_version=2)])  # type: ignore[call-arg]
    store.close()


@pytest.mark.parametrize("default", ["2", 2.0, True, None])
def test_a_version_that_is_not_a_number_is_refused_with_the_codec(default: Any) -> None:
    class Deposited(BaseModel):
        type: Literal["Deposited"] = "Deposited"
        schema_version: Any = default

    with pytest.raises(TypeError, match="Deposited has no number as schema_version"):
        EventCodec(Deposited)


def test_a_version_without_a_default_is_refused_with_the_codec() -> None:
    class Deposited(BaseModel):
        type: Literal["Deposited"] = "Deposited"
        schema_version: int

    with pytest.raises(TypeError, match=r"give it a default: schema_version: Literal\[2\] = 2"):
        EventCodec(Deposited)


class ThreadPinned(Event):
    """An event of the domain's kind, at its second version."""

    type: Literal["ThreadPinned"] = "ThreadPinned"
    schema_version: Literal[2] = 2
    thread_id: UUID


def test_a_version_that_was_changed_after_validation_is_refused(memory: Database) -> None:
    store = EventStore(memory.engine, EventCodec(ThreadPinned, check=require_intact))
    intact = ThreadPinned(thread_id=UUID(int=1))
    store.append_all([intact])
    changed = intact.model_copy()
    object.__setattr__(changed, "schema_version", 5)
    constructed = ThreadPinned.model_construct(**{**dict(intact), "schema_version": 5})
    for tampered in (changed, constructed):
        with pytest.raises(EventEncodeError, match="it was changed after validation: schema_version"):
            store.append_all([tampered])
    assert store.last_sequence() == 1
    store.close()
