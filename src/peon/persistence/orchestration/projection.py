"""The projection of the domain: projects, threads, turns, messages, and what belongs to them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table

from peon.orchestration import BranchCreated, BranchPushed, OrchestrationEvent, ProjectDeleted, ThreadDeleted
from peon.persistence import schema
from peon.persistence.backends import backend_of
from peon.persistence.backends.interface import Backend
from peon.persistence.log.stored_event import StoredEvent
from peon.persistence.orchestration.batch import Batch
from peon.persistence.orchestration.deletions import clear_some
from peon.persistence.orchestration.handlers import HANDLERS
from peon.persistence.orchestration.loaded_rows import Contradiction
from peon.persistence.orchestration.nul_characters import IDENTIFYING_FIELDS
from peon.persistence.orchestration.visibility import visible_rows
from peon.persistence.projections.base import Projection, Refusal
from peon.persistence.runtime.event_loop import with_pauses


class OrchestrationProjection(Projection):
    """Fills the tables of the read model. Events that are not the domain's pass by it."""

    name = "orchestration"
    version = 4
    tables = (
        schema.projection_projects,
        schema.projection_threads,
        schema.projection_turns,
        schema.projection_messages,
        schema.projection_message_chunks,
        schema.projection_open_tool_calls,
        schema.projection_approvals,
        schema.checkpoints,
        schema.projection_commits,
        schema.projection_branches,
        schema.projection_selected_thread,
        schema.projection_deletions,
    )

    def apply(self, connection: Connection, events: Sequence[StoredEvent[Any]]) -> Iterable[Refusal]:
        refusals: list[Refusal] = []
        backend = backend_of(connection)
        has_limits = not backend.stores_nul or backend.maximum_key_bytes is not None
        deletions_left = False
        for part in _parts(events):
            batch = Batch()
            wanted = batch.wanted()
            for _, event, _ in with_pauses(part, connection.dialect):
                if (handler := HANDLERS.get(type(event))) is not None:
                    for table, field in handler.reads:
                        identifier = getattr(event, field)
                        wanted[table][identifier.int] = identifier
            batch.load(connection)
            deletions_left |= batch.deletions_left
            for sequence, event, _ in with_pauses(part, connection.dialect):
                if (handler := HANDLERS.get(type(event))) is None:
                    continue
                try:
                    if has_limits:
                        _require_storable(event, backend)
                    handler.apply(batch, event, sequence)
                except Contradiction as contradiction:
                    refusals.append(Refusal(sequence, str(contradiction)))
            batch.write(connection)
        if deletions_left:
            clear_some(connection)
        return refusals

    def finish(self, connection: Connection) -> None:
        while clear_some(connection):
            pass

    def visible_rows(self, tables: Mapping[str, Table]) -> Mapping[str, ColumnElement[bool]]:
        return visible_rows(tables)


def _parts(events: Sequence[StoredEvent[Any]]) -> Iterator[Sequence[StoredEvent[Any]]]:
    """Splits events after each deletion: the database, which deletes dependent rows, must have all earlier rows."""
    start = 0
    for end, (_, event, _) in enumerate(events, 1):
        if type(event) is ThreadDeleted or type(event) is ProjectDeleted:
            yield events[start:end]
            start = end
    if start < len(events):
        yield events[start:] if start else events


def _require_storable(event: OrchestrationEvent, backend: Backend) -> None:
    if not backend.stores_nul:
        for name in IDENTIFYING_FIELDS.get(type(event), ()):
            if "\0" in getattr(event, name):
                raise Contradiction(f"PostgreSQL cannot hold the NUL character in its {name}")
    limit = backend.maximum_key_bytes
    if limit is not None and isinstance(event, BranchCreated | BranchPushed):
        size = len(event.name.encode())
        if size > limit:
            raise Contradiction(f"PostgreSQL cannot index its name of {size:,} bytes: {limit:,} at most")
