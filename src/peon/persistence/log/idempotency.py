"""Idempotent commands: a receipt of what a command stored, and the comparison of a repetition with it."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from sqlalchemy import Connection, bindparam, select

from peon.persistence.backends.compiled import CompiledQuery, insert_into
from peon.persistence.log.instants import equal_as_instants
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import command_receipts

_INSERT = insert_into(command_receipts)

_FIND = CompiledQuery(
    select(command_receipts.c.first_sequence, command_receipts.c.events, command_receipts.c.stored_at).where(
        command_receipts.c.command_id == bindparam("of_command")
    ),
    ["of_command"],
)


class Receipt(NamedTuple):
    """What a command stored: a number of events from `first_sequence` on, which is 0 if there are none.

    `stored_at` is the text in that column of its events. If the last event of the log is removed, PostgreSQL uses its
    sequence again. The time distinguishes the two events.
    """

    first_sequence: int
    events: int
    stored_at: str


def receipt_of(connection: Connection, command_id: UUID) -> Receipt | None:
    rows = _FIND.rows(connection, str(command_id))
    return Receipt(*rows[0]) if rows else None


def add_receipt(connection: Connection, command_id: UUID, receipt: Receipt) -> None:
    _INSERT.run(connection, [(str(command_id), *receipt)])


class Command:
    """A command and its events, ready to be compared with what it stored earlier.

    A field that the application left to a default factory which gives another value each time, such as the time of
    an event, says nothing about the command, and is not compared. Which fields these are is found out here, before
    the write lock is held, since it calls the factories.

    Attributes:
        id: The identifier of the command.
    """

    def __init__(self, command_id: UUID, events: Sequence[BaseModel]) -> None:
        self.id = command_id
        self._events = events
        self._generated = [_generated_fields(event) for event in events]

    def difference(self, stored: Sequence[BaseModel], redacted: Set[int] = frozenset()) -> str | None:
        """Returns what makes this another command than the one that stored those events; `None` for the same.

        Args:
            redacted: The indexes of the events of which a redaction has replaced any field. Only the type is compared.
        """
        if len(stored) != len(self._events):
            return f"it has stored {counted(len(stored), 'event')}, and was now given {len(self._events):,}"
        for index, (before, now) in enumerate(zip(stored, self._events, strict=True)):
            if type(before) is not type(now):
                return f"event {index} was {type(before).__name__}, and is {type(now).__name__}"
            for name in () if index in redacted else type(now).model_fields:
                if name in self._generated[index]:
                    continue
                values = getattr(before, name), getattr(now, name)
                # Compared as text too: to Python, 1 and True are equal.
                if not equal_as_instants(*values) or len({_canonical_text(value) for value in values}) > 1:
                    return f"event {index} ({type(now).__name__}) has another {name}"
        return None


def _generated_fields(event: BaseModel) -> frozenset[str]:
    return frozenset(
        name
        for name, field in type(event).model_fields.items()
        if name not in event.model_fields_set and _is_generated(field, getattr(event, name))
    )


def _is_generated(field: FieldInfo, value: object) -> bool:
    if field.default_factory is None:
        return False
    try:
        return not equal_as_instants(field.get_default(call_default_factory=True, validated_data={}), value)
    except Exception:  # a factory that takes the other fields into account
        return True


def _canonical_text(value: object) -> str:
    """Returns text close to JSON in which unordered values are sorted, so that equal sets give equal text.

    Not of what `model_dump` returns, which fails for a set of models: the dictionaries of models are not hashable.
    """
    if isinstance(value, BaseModel):
        value = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
    if isinstance(value, Mapping):
        return f"{{{sorted((_canonical_text(key), _canonical_text(each)) for key, each in value.items())}}}"
    if isinstance(value, Set):
        return f"{{{sorted(map(_canonical_text, value))}}}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return f"{[*map(_canonical_text, value)]}"
    # Other types only have to be equal to Python; their own text may differ for equal values.
    return to_json(value, bytes_mode="base64", fallback=lambda other: type(other).__qualname__).decode()
