"""The projection of the domain: projects, threads, turns, messages, and what belongs to them."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from sqlalchemy import Connection

from peon.orchestration import BranchCreated, BranchPushed, OrchestrationEvent, ProjectDeleted, ThreadDeleted
from peon.orchestration.events import Event
from peon.persistence import schema
from peon.persistence.backends import backend_of
from peon.persistence.backends.interface import Backend
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.orchestration.batch import Batch
from peon.persistence.orchestration.handlers import HANDLERS
from peon.persistence.orchestration.loaded_rows import Contradiction
from peon.persistence.projections.base import Projection, Refusal
from peon.persistence.runtime.event_loop import with_pauses
from peon.storable_text import storable_text


class OrchestrationProjection(Projection):
    """Fills the tables of the read model."""

    name = "orchestration"
    version = 1
    tables = (
        schema.projection_projects,
        schema.projection_threads,
        schema.projection_turns,
        schema.projection_messages,
        schema.projection_message_chunks,
        schema.projection_approvals,
        schema.checkpoints,
        schema.projection_commits,
        schema.projection_branches,
        schema.projection_selected_thread,
    )

    def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> Iterable[Refusal]:
        refusals: list[Refusal] = []
        backend = backend_of(connection)
        has_limits = not backend.stores_nul or backend.maximum_key_bytes is not None
        for part in _parts(events):
            batch = Batch()
            wanted = batch.wanted()
            for _, event, _ in with_pauses(part, connection.dialect):
                for table, field in HANDLERS[type(event)].reads:
                    wanted[table].add(getattr(event, field))
            batch.load(connection)
            for sequence, event, _ in with_pauses(part, connection.dialect):
                try:
                    if has_limits:
                        event = _storable(event, backend)
                    HANDLERS[type(event)].apply(batch, event, sequence)
                except Contradiction as contradiction:
                    refusals.append(Refusal(sequence, str(contradiction)))
            batch.write(connection)
        return refusals


def _parts(
    events: Sequence[StoredEvent[OrchestrationEvent]],
) -> Iterator[Sequence[StoredEvent[OrchestrationEvent]]]:
    """Splits events after each deletion: the database, which deletes dependent rows, must have all earlier rows."""
    start = 0
    for end, (_, event, _) in enumerate(events, 1):
        if type(event) is ThreadDeleted or type(event) is ProjectDeleted:
            yield events[start:end]
            start = end
    if start < len(events):
        yield events[start:] if start else events


@cache
def _columns_of_text(event: type[Event]) -> tuple[str, ...]:
    """Returns the fields that are stored as plain text. Those that are stored as JSON can hold any character."""
    fields = event.model_fields.items()
    return tuple(name for name, field in fields if field.annotation in (str, str | None) and name != "delta")


def _storable(event: OrchestrationEvent, backend: Backend) -> OrchestrationEvent:
    """Returns the event as the tables can hold it; raises `Contradiction` if they cannot."""
    if not backend.stores_nul:
        for name in _columns_of_text(type(event)):
            text = getattr(event, name) or ""
            if "\0" in text:
                if name == "error":  # a failure must always be storable
                    return event.model_copy(update={name: storable_text(text)})
                raise Contradiction(f"PostgreSQL cannot hold the NUL character in its {name}")
    limit = backend.maximum_key_bytes
    if limit is not None and isinstance(event, BranchCreated | BranchPushed):
        size = len(event.name.encode())
        if size > limit:
            raise Contradiction(f"PostgreSQL cannot index its name of {size:,} bytes: {limit:,} at most")
    return event
