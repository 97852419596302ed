"""The codec of the domain's own events."""

from peon.orchestration import OrchestrationEvent
from peon.orchestration.model import require_intact
from peon.persistence.log.codec import EventCodec

orchestration_codec: EventCodec[OrchestrationEvent] = EventCodec(
    OrchestrationEvent, check=require_intact, tags=["project_id", "thread_id", "turn_id"]
)
