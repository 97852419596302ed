"""Hypothesis strategies for the values and events of the domain."""

from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import AwareDatetime

from peon.orchestration import (
    MessageContent,
    MessageRole,
    OrchestrationEvent,
    Provider,
    RuntimeMode,
    ThreadStatus,
    ThreadStatusChanged,
)
from peon.orchestration.events import Event
from peon.orchestration.model import Value
from peon.payloads import MAXIMUM_INTEGER_BITS

ValueT = TypeVar("ValueT", bound=Value)

EVENT_CLASSES: tuple[type[Event], ...] = get_args(get_args(OrchestrationEvent)[0])
CONTENT_CLASSES: tuple[type[Value], ...] = get_args(get_args(MessageContent)[0])

texts = st.text(st.characters(codec="utf-8"), max_size=20)

offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))

# A day away from either end, so that no offset leads out of the years that a datetime can hold. A fold means
# nothing where the offset is fixed.
moments = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=offsets,
).map(lambda moment: moment.replace(fold=0))

large_integers = st.builds(
    lambda bits, sign: sign * (2**bits - 1), st.integers(0, MAXIMUM_INTEGER_BITS), st.sampled_from([1, -1])
)

json_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | large_integers
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)

json_values: SearchStrategy[Any] = st.recursive(
    json_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=10
)

json_objects = st.dictionaries(texts, json_values, max_size=4)

_by_type: dict[Any, SearchStrategy[Any]] = {
    UUID: st.uuids(),
    str: texts,
    str | None: st.none() | texts,
    bool: st.booleans(),
    AwareDatetime: moments,
    Any: json_values,
    dict[str, Any]: json_objects,
    Provider: st.sampled_from(Provider),
    RuntimeMode: st.sampled_from(RuntimeMode),
    MessageRole: st.sampled_from(MessageRole),
}


def values_of(model: type[ValueT]) -> SearchStrategy[ValueT]:
    """Returns a strategy for instances of one class, with every field set."""
    hints = get_type_hints(model)
    fields = {
        name: _by_type[hints[name]]
        for name in model.model_fields
        if get_origin(hints[name]) is not Literal and not (model is ThreadStatusChanged and name in {"status", "error"})
    }
    if model is not ThreadStatusChanged:
        return st.builds(model, **fields)
    fine = st.sampled_from([status for status in ThreadStatus if status is not ThreadStatus.ERROR])
    return st.builds(model, **fields, status=fine, error=st.none()) | st.builds(
        model, **fields, status=st.just(ThreadStatus.ERROR), error=texts
    )


message_contents = st.one_of([values_of(model) for model in CONTENT_CLASSES])
_by_type[get_args(MessageContent)[0]] = message_contents

orchestration_events: SearchStrategy[OrchestrationEvent] = st.one_of(
    [cast("SearchStrategy[OrchestrationEvent]", values_of(model)) for model in EVENT_CLASSES]
)
