"""What commands have stored: a receipt each, written in the transaction of their events."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from sqlalchemy import Connection, bindparam, select

from peon.persistence.backends.compiled import DriverQuery, insert_into
from peon.persistence.schema import command_receipts

_INSERT = insert_into(command_receipts)

_FIND = DriverQuery(
    select(command_receipts.c.first_sequence, command_receipts.c.events).where(
        command_receipts.c.command_id == bindparam("of_command")
    ),
    ["of_command"],
)


class Receipt(NamedTuple):
    """What a command has stored: `events` of them, from `first_sequence` on; 0 where there are none."""

    first_sequence: int
    events: int


def receipt_of(connection: Connection, command_id: UUID) -> Receipt | None:
    rows = _FIND.rows(connection, str(command_id))
    return Receipt(*rows[0]) if rows else None


def add_receipt(connection: Connection, command_id: UUID, receipt: Receipt, stored_at: str) -> None:
    _INSERT.run(connection, [(str(command_id), *receipt, stored_at)])


def difference(stored: Sequence[BaseModel], repeated: Sequence[BaseModel]) -> str | None:
    """Returns what makes a repeat another command, `None` where it is the same.

    A field that the repeat has left to a default factory that makes another value each time, such as the time of an
    event, says nothing about the command, and is not compared.
    """
    if len(stored) != len(repeated):
        return f"it has stored {len(stored)} events, and these are {len(repeated)}"
    for index, (before, now) in enumerate(zip(stored, repeated, strict=True)):
        if type(before) is not type(now):
            return f"event {index} was {type(before).__name__}, and is {type(now).__name__}"
        dump_before, dump_now = (event.model_dump(by_alias=False) for event in (before, now))
        for name, field in type(now).model_fields.items():
            if name not in now.model_fields_set and _is_made_anew(field, getattr(now, name)):
                continue
            # As text too: to Python, 1 and True are equal.
            same = getattr(before, name) == getattr(now, name)
            if not same or _text(dump_before.get(name)) != _text(dump_now.get(name)):
                return f"event {index} ({type(now).__name__}) has another {name}"
    return None


def _is_made_anew(field: FieldInfo, value: object) -> bool:
    if field.default_factory is None:
        return False
    try:
        return bool(field.get_default(call_default_factory=True, validated_data={}) != value)
    except Exception:  # a factory that takes the other fields into account
        return True


def _text(value: object) -> str:
    """Returns JSON, or nearly so, in which what has no order is sorted: two sets that are equal have the same."""
    if isinstance(value, dict):
        return f"{{{sorted((_text(key), _text(each)) for key, each in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{{{sorted(map(_text, value))}}}"
    if isinstance(value, list | tuple):
        return f"{[*map(_text, value)]}"
    return to_json(value, bytes_mode="base64", fallback=repr).decode()
