"""Encodes events into the `event_type` and `payload` columns of the log, and decodes them."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json, to_json
from typing_extensions import TypeForm

from peon.payloads import event_type_name
from peon.persistence.errors import EventDecodeError, EventEncodeError
from peon.persistence.log.codec_tags import CodecTags
from peon.persistence.log.instants import equal_as_instants
from peon.persistence.log.lone_surrogates import place_of_lone_surrogate
from peon.validation_messages import collect_names, describe, describe_place

EventT = TypeVar("EventT", bound=BaseModel)
"""The union of events of a codec and its store."""

SCHEMA_VERSION = "schema_version"
"""The field of a payload that has the version of the event class that wrote it; without it, the version is 1."""

UNKNOWN_TYPE = "no event of this type is known; a newer version may have written it"
"""Why an event whose type is not in the union cannot be decoded. Projections record it, so do not change the text."""

_VERSION_KEY = f'"{SCHEMA_VERSION}"'
"""What a payload with a version contains. Within a text of the payload, the quotation marks would be escaped."""


@dataclass(frozen=True)
class Upcaster:
    """Converts payloads of one event type from one schema version to the next.

    Attributes:
        event_type: The `type` of the payloads that it converts.
        from_version: Their schema version: the integer in their field `schema_version`, 1 if they have none.
        lift: Takes a payload as parsed JSON, and returns it in the form of the next version, with the new
            `schema_version`. It may return another `type`, which renames the event.
    """

    event_type: str
    from_version: int
    lift: Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class UndecodableEvent:
    """Takes the place of a stored event that cannot be decoded.

    Attributes:
        event_type: The value of its `event_type` column.
        payload: Its `payload` column, unchanged; bytes that are not UTF-8 are written as `\\xNN`.
        reason: Why it cannot be decoded.
    """

    event_type: str
    payload: str
    reason: str


class EventCodec(Generic[EventT]):
    """Encodes and decodes the events of a pydantic union whose members are distinguished by `type`.

    Args:
        union: The union, or a single event class. Each member fixes its type: `type: Literal["…"] = "…"`.
        upcasters: Steps that convert payloads of older versions.
        check: Raises an exception for an event that would not be read back equal. By default each event is decoded
            again before it is stored, and compared. That finds everything that JSON cannot carry, for any models,
            and makes encoding about twice as slow.
        tags: Fields by which `EventQuery` finds events. Their values are text, integers, UUIDs, enumerations of
            those, lists or sets of them, which give an event several values of the tag, or `None`, which no query
            matches. Not every member needs to have them.

    Attributes:
        decoders: Fast path, by event type: raises raw errors. Use `decode` for explained ones.
        event_classes: The members of the union.
        tags: The names of the tags.
        query_tags: Refuses queries that no event can match.

    Raises:
        TypeError: A member of the union is not an event, or its `schema_version` has no number as its default.
        ValueError: Two members have the same type, or two upcasters convert the same version; no member has a field
            of a tag's name, or the field has other values or is stored under an alias.
    """

    def __init__(
        self,
        union: TypeForm[EventT],
        *,
        upcasters: Iterable[Upcaster] = (),
        check: Callable[[EventT], None] | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self._union = union
        self._upcasters = tuple(upcasters)
        self._types: dict[type[BaseModel], _EventType] = {}
        self.decoders: dict[str, Callable[[str | bytes], EventT]] = {}
        for model in _members(union):
            event_type = _EventType(model, check)
            if event_type.name in self.decoders:
                raise ValueError(f"two members of the union have the type {event_type.name}")
            self._types[model] = event_type
            refuses = event_type.refuses_other_versions
            self.decoders[event_type.name] = event_type.read if refuses else self._reader_of_version_one(event_type)
        self.event_classes: frozenset[type[BaseModel]] = frozenset(self._types)
        self._current = {event_type.name: event_type for event_type in self._types.values()}
        self._names: set[object] = set()
        for model in self._types:
            collect_names(model, self._names)
        self._lifts: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
        current = {(event_type.name, event_type.version) for event_type in self._types.values()}
        # The types whose version has to be looked at; the others are decoded directly.
        versioned = {name for name, version in current if version != 1}
        for upcaster in self._upcasters:
            versioned.add(upcaster.event_type)
            step = (upcaster.event_type, upcaster.from_version)
            if step in self._lifts:
                raise ValueError(f"two upcasters lift {step[0]} from version {step[1]}")
            if step in current:
                raise ValueError(
                    f"an upcaster lifts {step[0]} from version {step[1]}, which is its current one: give the "
                    f"event a field  {SCHEMA_VERSION}: Literal[{step[1] + 1}] = {step[1] + 1}"
                )
            self._lifts[step] = upcaster.lift
        for name in versioned:
            self.decoders[name] = partial(self._lift_and_decode, name)
        models = {event_type.name: model for model, event_type in self._types.items()}
        self.query_tags = CodecTags(tags, models, {name for name, _ in self._lifts})
        self.tags = self.query_tags.names

    def including(self, part: "EventCodec[Any]") -> "EventCodec[EventT]":
        """Returns this codec with the tags and upcasters of another one, and its check for the events of that one.

        Raises:
            ValueError: See `EventCodec`, for the tags and upcasters of both.
        """
        codec = EventCodec(
            self._union,
            upcasters=dict.fromkeys((*self._upcasters, *part._upcasters)),
            tags=self.tags | part.tags,
        )
        for model, event_type in codec._types.items():
            event_type.check = part._types.get(model, self._types[model]).check
        return codec

    def encode(self, events: Iterable[EventT]) -> tuple[list[str], list[str]]:
        """Returns the columns `event_type` and `payload`.

        Raises:
            EventEncodeError: At the first event that would not be read back equal.
        """
        names = []
        payloads = []
        types = self._types
        for index, event in enumerate(events):
            try:
                event_type = types[type(event)]
                check = event_type.check
                if check is not None:
                    check(event)
                payload = event_type.write(event).decode()
                if check is None and not equal_as_instants(self.decoders[event_type.name](payload), event):
                    raise _Refused("what is read back is not equal to it")
            except Exception as error:
                raise EventEncodeError(index, type(event).__name__, self._refusal(event, error)) from None
            names.append(event_type.name)
            payloads.append(payload)
        return names, payloads

    def decode(self, sequence: int, event_type: str, payload: str) -> EventT:
        """Returns the event of a stored row; `sequence` is only used in errors.

        Raises:
            EventDecodeError: No member of the union has the type, or the payload is not one of it.
        """
        try:
            return self.decoders[event_type](payload)
        except ValidationError as error:
            reason = self._refusal_of_version(event_type, payload) or describe(error, self._names)
        except KeyError:
            reason = UNKNOWN_TYPE
        except _Refused as error:
            reason = str(error)
        # Outside the handlers, as pydantic's error shows parts of the payload.
        raise EventDecodeError(sequence, event_type, reason)

    def _reader_of_version_one(self, event_type: "_EventType") -> Callable[[str | bytes], EventT]:
        """Returns the decoder of a class that would read a payload of any other version as its own."""
        read = event_type.read
        read_with_version = partial(self._lift_and_decode, event_type.name)

        def read_version_one(payload: str | bytes) -> EventT:
            # Searching the text takes less time than parsing it twice. Damaged files also have bytes here.
            if isinstance(payload, str) and _VERSION_KEY not in payload:
                event: EventT = read(payload)
                return event
            return read_with_version(payload)

        return read_version_one

    def _refusal_of_version(self, event_type: str, payload: str | bytes) -> str | None:
        if isinstance(payload, str) and _VERSION_KEY in payload:
            with suppress(ValidationError):
                try:
                    self._lift_and_decode(event_type, payload)
                except _Refused as error:
                    return str(error)
        return None

    def _lift_and_decode(self, event_type: str, payload: str | bytes) -> EventT:
        fields = _parse_object(payload)
        step = _step_of(fields)
        if step[0] != event_type:
            raise _Refused("the type in its payload is another one")
        passed = set()
        while lift := self._lifts.get(step):
            if step in passed:
                raise _Refused(
                    f"the upcasters go in a circle at {step[0]} version {step[1]}: each sets the next {SCHEMA_VERSION}"
                )
            passed.add(step)
            try:
                fields = lift(fields)
                payload = to_json(fields)
            except Exception as error:
                # Only its name and place, because its text may hold parts of the payload.
                place = traceback.extract_tb(error.__traceback__)[-1]
                raise _Refused(
                    f"the upcaster of {step[0]} from version {step[1]} failed with {type(error).__name__} "
                    f"at {place.filename}:{place.lineno}"
                ) from None
            step = _step_of(fields)
        current = self._current[step[0]]
        if current.version < step[1]:
            raise _Refused(
                f"it is of version {step[1]}, and this program knows version {current.version}: "
                "a newer version of the program has written it"
            )
        if current.version != step[1]:
            raise _Refused(f"it is of version {step[1]}, and no upcaster lifts that to version {current.version}")
        event: EventT = current.read(payload)
        return event

    def _refusal(self, event: object, error: Exception) -> str:
        if not isinstance(event, BaseModel):
            return "it is not an event"
        event_type = self._types.get(type(event))
        if event_type is None:
            return "its class is not in the codec's union of events"
        try:
            event_type.validate(event.__dict__, strict=True)
        except ValidationError as invalid:
            return f"it was changed after validation: {describe(invalid, self._names)}"
        if (place := place_of_lone_surrogate(event)) is not None:
            return (
                f"{describe_place(place, self._names)}: text with a lone surrogate cannot be encoded as UTF-8. "
                "Pass text through peon.orchestration.storable_text, and streamed chunks through a ChunkJoiner"
            )
        if isinstance(error, _Refused):
            return str(error)
        if isinstance(error, ValidationError):
            return f"it could not be read back: {describe(error, self._names)}"
        return f"it cannot be written as JSON ({type(error).__name__})"


class _EventType:
    """One member of the union, with the pydantic functions that are called for each event."""

    def __init__(self, model: type[BaseModel], check: Callable[[Any], None] | None) -> None:
        self.name = event_type_name(model)
        self.check = check
        adapter = TypeAdapter(model)
        field = model.model_fields.get(SCHEMA_VERSION)
        self.version = 1 if field is None else _version_of(model, field)
        if field is None:
            self.refuses_other_versions = model.model_config.get("extra") == "forbid"
        else:
            self.refuses_other_versions = get_args(field.annotation) == (self.version,)
        # Of the class instead of the union, so that pydantic does not have to search for the member.
        self.write = adapter.serializer.to_json
        self.read = adapter.validator.validate_json
        self.validate = adapter.validator.validate_python


def _version_of(model: type[BaseModel], field: FieldInfo) -> int:
    if type(field.default) is not int:
        raise TypeError(
            f"{model.__name__} has no number as {SCHEMA_VERSION}: give it a default: {SCHEMA_VERSION}: Literal[2] = 2"
        )
    return field.default


class _Refused(Exception):  # noqa: N818
    """Carries a reason to the method that knows the place of the event."""


def _members(union: Any) -> Iterator[type[BaseModel]]:
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    if hasattr(union, "__value__"):  # type X = …
        yield from _members(union.__value__)
    elif get_origin(union) in (Union, UnionType):
        for member in get_args(union):
            yield from _members(member)
    else:
        yield union


def _parse_object(payload: str | bytes) -> dict[str, Any]:
    try:
        fields = from_json(payload)
    except (ValueError, TypeError) as error:  # in a damaged file, the column may hold anything
        raise _Refused(f"invalid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _Refused("not a JSON object")
    return fields


def _step_of(fields: object) -> tuple[str, int]:
    event_type = fields.get("type") if isinstance(fields, dict) else None
    version = fields.get(SCHEMA_VERSION, 1) if isinstance(fields, dict) else None
    if not isinstance(event_type, str) or type(version) is not int:
        raise _Refused(f"it is not an object with a type and, after version 1, a number as {SCHEMA_VERSION}")
    return event_type, version
