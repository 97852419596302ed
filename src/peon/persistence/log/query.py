"""Which events a reader asks for, and on which an append depends."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from uuid import UUID

from pydantic_core import from_json

TYPE = "type"
"""The tag that every event has: the name under which it is stored."""

_IDENTIFIERS = ("turn_id", "thread_id", "project_id")

MAXIMUM_KEY_CHARACTERS = 500
"""An index of PostgreSQL takes a third of a page, which is 2,704 bytes."""

TagValue = UUID | str | int


@dataclass(frozen=True, kw_only=True)
class EventQuery:
    """Matches the events that have everything that is given; a query without arguments matches every event.

    An event has the identifiers that are fields of its own: an event of a turn has `turn_id` and `thread_id`, and
    only events of projects and `ThreadCreated` have `project_id`. What counts is what is stored: if an upcaster has
    renamed a type or a field, ask for the old name as well.

    Args:
        event_types: Names, see `event_type_name`: the event is of one of them. Kept as a tuple.
        project_id: A UUID, or its text.
        thread_id: See `project_id`.
        turn_id: See `project_id`.
        tags: A dictionary of further fields and their values; the codec must name the fields as tags. Text must be
            as it is in the field's JSON; pass the UUID object if the field is a UUID, the member if it is an
            enumeration. Kept as a tuple of pairs, sorted by name.

    Raises:
        TypeError: `event_types` is a single text; a value is neither text nor an integer nor a UUID.
        ValueError: An identifier is not a UUID; a tag is also given as an argument of its own.
    """

    event_types: Iterable[str] | None = None
    project_id: UUID | str | None = None
    thread_id: UUID | str | None = None
    turn_id: UUID | str | None = None
    tags: Mapping[str, TagValue] | tuple[tuple[str, TagValue], ...] = ()

    def __post_init__(self) -> None:
        # Copies: an iterator can be read only once, and a list or dictionary may be changed by its owner.
        object.__setattr__(self, "event_types", checked_names(self.event_types))
        if not isinstance(self.tags, Mapping | tuple):
            raise TypeError(f"tags are given as a dictionary, not {type(self.tags).__name__}")
        tags = {name: value.value if isinstance(value, Enum) else value for name, value in dict(self.tags).items()}
        for name, value in tags.items():
            if type(value) is bool or not isinstance(value, UUID | str | int):
                raise TypeError(f"the value of tag {name} is text, a number or a UUID, not {type(value).__name__}")
            given = self.event_types if name == TYPE else getattr(self, name) if name in _IDENTIFIERS else None
            if given is not None:
                raise ValueError(f"{name} was given twice: leave it out of the tags")
        object.__setattr__(self, "tags", tuple(sorted(tags.items(), key=lambda tag: tag[0])))
        self.wanted()  # raises for an identifier that is not a UUID

    def wanted(self) -> dict[str, list[str]]:
        """Returns for each tag the keys of which an event must have one; the most selective tag first."""
        wanted = {name: [_key_in(name, value)] for name, value in dict(self.tags).items()}
        for name in _IDENTIFIERS:
            identifier = getattr(self, name)
            if identifier is not None:
                wanted[name] = [str(canonical(name, identifier))]
        if self.event_types is not None:
            wanted[TYPE] = [key_of(name) for name in dict.fromkeys(self.event_types)]
        return wanted


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


def require_tags(query: EventQuery, tags: Collection[str]) -> None:
    """Raises `ValueError` for a query by a tag that is not one of the codec's."""
    if unknown := set(query.wanted()) - set(tags) - {TYPE}:
        known = ", ".join(sorted(tags)) or "none"
        raise ValueError(f"{min(unknown)} is not a tag of these events; the codec names {known}")


def checked_names(event_types: Iterable[str] | None) -> tuple[str, ...] | None:
    if event_types is None:
        return None
    if not isinstance(event_types, str) and isinstance(event_types, Iterable):
        names = tuple(event_types)
        if all(isinstance(name, str) for name in names):
            return names
    raise TypeError("event_types takes a list of names, see event_type_name: ['ProjectCreated']")


def keys_in(event_type: str, payload: str | bytes, names: Collection[str]) -> dict[str, str]:
    """Returns the keys of those tags that a stored event has; a payload that is not JSON has only its type."""
    keys = {TYPE: key_of(event_type)} if TYPE in names and isinstance(event_type, str) else {}
    if set(names) <= {TYPE}:
        return keys
    try:
        fields = from_json(payload)
    except (ValueError, TypeError):  # in a damaged file, the columns may hold anything
        return keys
    if isinstance(fields, dict):
        for name in names:
            value = fields.get(name)
            if name != TYPE and isinstance(value, str | int) and not isinstance(value, bool):
                keys[name] = _key_in(name, value)
    return keys


def _key_in(name: str, value: TagValue) -> str:
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
