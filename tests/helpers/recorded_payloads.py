"""The recorded payloads: one of every event and of every kind of content, as version 1 of the format wrote them."""

from pathlib import Path

from pydantic import TypeAdapter

from peon.orchestration import OrchestrationEvent

RECORDED = Path(__file__).parents[1] / "data" / "payloads" / "orchestration_v1.jsonl"
# Not splitlines: one of the payloads holds U+2028, which ends a line for Python, but not in JSON Lines.
PAYLOADS = RECORDED.read_bytes().decode().removesuffix("\n").split("\n")
EVENT: TypeAdapter[OrchestrationEvent] = TypeAdapter(OrchestrationEvent)
