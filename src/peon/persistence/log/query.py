"""Which events a reader asks for, and on which an append depends."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import NamedTuple, TypeGuard
from uuid import UUID

from pydantic_core import from_json

TYPE = "type"
"""The tag that every event has: the name under which it is stored."""

_IDENTIFIERS = ("turn_id", "thread_id", "project_id")

MAXIMUM_KEY_CHARACTERS = 500
"""An index of PostgreSQL takes a third of a page, which is 2,704 bytes."""

LIST = "[]"
"""Ends the name under which the index has a tag that can have several values.

The index of such a tag is another one than that of a tag with one value, which leaves out the values of lists. If a
field becomes a list, its index is therefore filled from the first event on.
"""

TagValue = UUID | str | int


class Clause(NamedTuple):
    """An event meets it if it has one of the keys of the tag."""

    tag: str
    keys: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class EventQuery:
    """Matches the events that have everything that is given; a query without arguments matches every event.

    See `any_of` for a query of several items, one of which must match, as in dcb.events.

    An event has the identifiers that are fields of its own: an event of a turn has `turn_id` and `thread_id`, and
    only events of projects and `ThreadCreated` have `project_id`. What counts is what is stored: if an upcaster has
    renamed a type or a field, ask for the old name as well.

    A store refuses a query that no event can match, with `ValueError`: its codec knows no such type, or no event of
    the types has these tags.

    Args:
        event_types: Names, see `event_type_name`: the event is of one of them. Kept as a tuple.
        project_id: A UUID, or its text.
        thread_id: See `project_id`.
        turn_id: See `project_id`.
        tags: A dictionary of further fields and their values; the codec must name the fields as tags. Text must be
            as it is in the field's JSON; pass the UUID object if the field is a UUID, the member if it is an
            enumeration. If the field is a list, several values may be given as a list: the event has all of them.
            Kept as a tuple of pairs, sorted by name.
        alternatives: Set by `any_of`.

    Raises:
        TypeError: `event_types` is a single text; a value is neither text nor an integer nor a UUID.
        ValueError: An identifier is not a UUID; a tag is also given as an argument of its own; a list of types or
            values is empty.
    """

    event_types: Iterable[str] | None = None
    project_id: UUID | str | None = None
    thread_id: UUID | str | None = None
    turn_id: UUID | str | None = None
    tags: Mapping[str, TagValue | Collection[TagValue]] | tuple[tuple[str, TagValue | tuple[TagValue, ...]], ...] = ()
    alternatives: tuple["EventQuery", ...] = ()

    @classmethod
    def any_of(cls, *queries: "EventQuery") -> "EventQuery":
        """Returns a query that matches the events that at least one of `queries` matches.

        Raises:
            TypeError: One of them is not an `EventQuery`.
            ValueError: No query was given.
        """
        for query in queries:
            if not isinstance(query, EventQuery):
                raise TypeError(f"any_of takes queries, EventQuery(…), not {type(query).__name__}")
        items = tuple(dict.fromkeys(item for query in queries for item in query.items()))
        if not items:
            raise ValueError("any_of takes at least one query; EventQuery() matches every event")
        return items[0] if len(items) == 1 else cls(alternatives=items)

    def __post_init__(self) -> None:
        # Copies: an iterator can be read only once, and a list or dictionary may be changed by its owner.
        object.__setattr__(self, "event_types", checked_names(self.event_types))
        if not isinstance(self.tags, Mapping | tuple):
            raise TypeError(f"tags are given as a dictionary, not {type(self.tags).__name__}")
        tags = {name: _checked_value(name, value) for name, value in dict(self.tags).items()}
        for name in tags:
            given = self.event_types if name == TYPE else getattr(self, name) if name in _IDENTIFIERS else None
            if given is not None:
                raise ValueError(f"{name} was given twice: leave it out of the tags")
        if TYPE in tags:
            event_type = tags.pop(TYPE)
            if not isinstance(event_type, str):
                raise ValueError("an event has one type, which is text: pass alternatives as event_types")
            object.__setattr__(self, "event_types", (event_type,))
        object.__setattr__(self, "tags", tuple(sorted(tags.items(), key=lambda tag: tag[0])))
        if self.alternatives and (self.event_types is not None or tags or self._identifiers()):
            raise ValueError("a query of alternatives has nothing beside them: give it to each of them")
        self.wanted()  # raises for an identifier that is not a UUID

    def items(self) -> "tuple[EventQuery, ...]":
        """Returns the queries of which one must match: the alternatives, or the query itself."""
        return self.alternatives or (self,)

    def wanted(self) -> list[list[Clause]]:
        """Returns for each item the clauses that an event must meet; the most selective tags first."""
        return [item.clauses() for item in self.items()]

    def clauses(self) -> list[Clause]:
        """Returns the clauses of an item. See `wanted`."""
        clauses = []
        for name, value in dict(self.tags).items():
            keys = sorted({key_in(name, each) for each in (value if isinstance(value, tuple) else (value,))})
            clauses += [Clause(name, frozenset([key])) for key in keys]
        for name, identifier in self._identifiers().items():
            clauses.append(Clause(name, frozenset([str(canonical(name, identifier))])))
        if self.event_types is not None:
            clauses.append(Clause(TYPE, frozenset(map(key_of, self.event_types))))
        return clauses

    def _identifiers(self) -> dict[str, UUID | str]:
        given = {name: getattr(self, name) for name in _IDENTIFIERS}
        return {name: identifier for name, identifier in given.items() if identifier is not None}


def _checked_value(name: str, value: object) -> TagValue | tuple[TagValue, ...]:
    """Returns the value of a tag, several values as a tuple in the order of their texts."""
    if isinstance(value, list | tuple | set | frozenset):
        if not value:
            raise ValueError(f"no value was given for the tag {name}: leave it out, or ask for at least one value")
        values = sorted({_checked_scalar(name, each) for each in value}, key=str)
        return values[0] if len(values) == 1 else tuple(values)
    return _checked_scalar(name, value)


def _checked_scalar(name: str, value: object) -> TagValue:
    value = value.value if isinstance(value, Enum) else value
    if type(value) is bool or not isinstance(value, UUID | str | int):
        raise TypeError(f"the value of tag {name} is text, a number or a UUID, not {type(value).__name__}")
    return value


@dataclass(frozen=True)
class AppendCondition:
    """Append only if no event that matches `query` was stored after `after` (see dcb.events).

    Attributes:
        query: The events on which the decision to append was based.
        after: The sequence up to which they were read.
    """

    query: EventQuery
    after: int

    def __post_init__(self) -> None:
        if not isinstance(self.query, EventQuery):
            raise TypeError(f"the query of a condition is an EventQuery, not {type(self.query).__name__}")
        if type(self.after) is not int:
            raise TypeError(f"after is a sequence, not {type(self.after).__name__}")
        if self.after < 0:
            raise ValueError(f"after is a number from 0 on, not {self.after}")


def checked_names(event_types: Iterable[str] | None) -> tuple[str, ...] | None:
    if event_types is None:
        return None
    if not isinstance(event_types, str) and isinstance(event_types, Iterable):
        names = tuple(event_types)
        if not names:
            raise ValueError("event_types is empty, so no event can match: leave it out to ask for all types")
        if all(isinstance(name, str) for name in names):
            return names
    raise TypeError("event_types takes a list of names, see event_type_name: ['ProjectCreated']")


def keys_in(event_type: str, payload: str | bytes, names: Collection[str]) -> dict[str, Collection[str]]:
    """Returns the keys of those tags that a stored event has; a payload that is not JSON has only its type.

    Args:
        names: Of the tags; see `LIST`.
    """
    keys: dict[str, Collection[str]] = {}
    if TYPE in names and isinstance(event_type, str):
        keys[TYPE] = (key_of(event_type),)
    if set(names) <= {TYPE}:
        return keys
    try:
        fields = from_json(payload)
    except (ValueError, TypeError):  # in a damaged file, the columns may hold anything
        return keys
    if isinstance(fields, dict):
        for name in names:
            field = name.removesuffix(LIST)
            value = fields.get(field)
            if name == TYPE:
                continue
            if _has_key(value):
                keys[name] = (key_in(field, value),)
            elif isinstance(value, list) and field != name:
                keys[name] = {key_in(field, each) for each in value if _has_key(each)}
    return keys


def _has_key(value: object) -> TypeGuard[str | int]:
    return isinstance(value, str | int) and not isinstance(value, bool)


def key_in(name: str, value: TagValue) -> str:
    """Returns the key of a field's value: an identifier in its canonical form, however the field has it."""
    if name in _IDENTIFIERS:
        with suppress(ValueError):
            return str(UUID(str(value)))
    return key_of(str(value))


def key_of(value: str) -> str:
    """Returns the key of a value in the index: the value itself, or a digest if no index or database takes it."""
    encoded = value.encode(errors="surrogatepass")
    if len(value) <= MAXIMUM_KEY_CHARACTERS and b"\0" not in encoded and (value.isascii() or _is_valid(encoded)):
        return value
    return f"sha256:{sha256(encoded).hexdigest()}"


def _is_valid(encoded: bytes) -> bool:
    try:
        encoded.decode()
    except UnicodeDecodeError:  # a lone surrogate
        return False
    return True


def canonical(name: str, identifier: UUID | str) -> UUID:
    """Returns the UUID that a text stands for.

    Raises:
        ValueError: It is not the text of a UUID; the message calls it `name`.
    """
    if isinstance(identifier, UUID):
        return identifier
    try:
        return UUID(identifier)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{name} is a UUID or its text, not {identifier!r:.50}") from None
