"""The codec of the domain's own events, alone and in a union with events of an application."""

from typing import Any

from peon.orchestration import OrchestrationEvent
from peon.orchestration.model import require_intact
from peon.persistence.log.codec import EventCodec, EventT

orchestration_codec: EventCodec[OrchestrationEvent] = EventCodec(
    OrchestrationEvent, check=require_intact, tags=["project_id", "thread_id", "turn_id"]
)


def codec_of_store(codec: EventCodec[EventT] | None) -> EventCodec[Any]:
    """Returns the codec that an event store uses for the one that it is given.

    It is the domain's by default. A codec that has all events of the domain gets their check, tags and upcasters.
    """
    if codec is None:
        return orchestration_codec
    if not isinstance(codec, EventCodec):
        raise TypeError(f"codec takes an EventCodec of a union of events, not {type(codec).__name__}")
    return codec if _missing_in(codec) else codec.including(orchestration_codec)


def codec_of_database(codec: EventCodec[EventT] | None) -> EventCodec[Any]:
    """Like `codec_of_store`, for a store whose events the domain's projection follows.

    Raises:
        ValueError: The codec lacks events of the domain.
    """
    used = codec_of_store(codec)
    if missing := _missing_in(used):
        raise ValueError(
            f"the codec of a database must have every event of the domain, and this one lacks {min(missing)}: "
            "give it the union of OrchestrationEvent and your own events"
        )
    return used


def _missing_in(codec: EventCodec[Any]) -> set[str]:
    return {model.__name__ for model in orchestration_codec.event_classes - codec.event_classes}
