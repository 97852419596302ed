"""Redaction: the content of events is replaced, and the rows that follow from them, in one transaction."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import from_json
from sqlalchemy import Connection, Engine, select

from peon.orchestration import ThreadCreated, event_type_name
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import READ_ONLY
from peon.persistence.backends.retries import OwnTransaction, with_own_commit
from peon.persistence.errors import EventDecodeError, EventEncodeError, PersistenceError, StoreUnavailable
from peon.persistence.log.codec import EventCodec
from peon.persistence.log.pages import LogPages, LogRow
from peon.persistence.log.query import EventQuery
from peon.persistence.log.redacted import record_redaction, redacted_within
from peon.persistence.log.removed import begin_step, steps_of_compaction
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.maintenance.merging import REPLACE_EVENT
from peon.persistence.projections import Projection
from peon.persistence.projections.building import Builder, LogChanged
from peon.persistence.projections.manager import PAGES_A_COMMIT
from peon.persistence.projections.positions import Problem, position_of
from peon.persistence.projections.replay import Meter, Progress, Replay
from peon.persistence.schema import LAST_SEQUENCE, projection_positions
from peon.persistence.schema.timestamps import format_timestamp

WRITTEN_AT_ONCE = 500
"""Events that are read, compared and written with a few statements."""

Rule = Callable[[Any], BaseModel]
"""Takes an event, and returns what is stored instead: an event of the same type."""

ItemT = TypeVar("ItemT")


class Redaction(NamedTuple):
    """What a redaction has done, or would do.

    Attributes:
        events: The number of events whose content was replaced. Those that had no content, or have only markers, do not
            count.
        undecodable: The sequences of the events that match the query and cannot be decoded. They are as they were.
        until: The sequence up to which the log was looked at.
        remains: What is left to do until no byte of the content is in the files of the database, as a sentence; `None`
            if nothing is.
    """

    events: int
    undecodable: tuple[int, ...]
    until: int
    remains: str | None


class Redactor:
    """Redacts events in the log of `engine`, and in the tables of `projections`."""

    def __init__(
        self, engine: Engine, codec: EventCodec[Any], projections: Sequence[Projection], driver_errors: DriverErrors
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._projections = projections
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._index = TagIndex(engine, driver_errors, codec.query_tags.lists)
        self._builder = Builder(engine, Replay(engine, codec))

    def redact(
        self, query: EventQuery, rule: Rule, by: str, progress: Progress | None, *, vacuum: bool, dry_run: bool
    ) -> Redaction:
        if not isinstance(query, EventQuery):
            raise TypeError(f"query is an EventQuery, not {type(query).__name__}")
        self._codec.query_tags.require_possible(query)
        while True:
            change = self._planned(query, rule, by)
            if dry_run:
                return change.result(None)
            if not change.rows:
                # The call that has redacted them may have been interrupted before its last step.
                return change.result(self._erase(vacuum=vacuum) if self._are_redacted(change.unchanged) else None)
            try:
                self._write(change, progress)
            except LogChanged:
                continue
            return change.result(self._erase(vacuum=vacuum))

    def of_project(self, project_id: UUID | str) -> EventQuery:
        query = EventQuery(event_types=[event_type_name(ThreadCreated)], project_id=project_id)
        rows = (row for page in self._index.pages(query, 0, None) for row in page)
        threads = dict.fromkeys(from_json(payload).get("thread_id") for _, _, payload, _ in rows)
        of_threads = [EventQuery(thread_id=thread) for thread in threads if thread is not None]
        return EventQuery.any_of(EventQuery(project_id=project_id), *of_threads)

    def _planned(self, query: EventQuery, rule: Rule, by: str) -> "_Change":
        with self._driver_errors, self._reads.begin() as connection:
            self._require_all_projections(connection)
            seen = steps_of_compaction(connection)
            end = connection.scalars(LAST_SEQUENCE).one()
        change = _Change(self._engine, self._codec, self._index, query, rule, by, seen, end)
        for page in self._index.pages(query, 0, None):
            for row in page:
                if row[0] <= end:
                    change.consider(row)
        return change

    def _require_all_projections(self, connection: Connection) -> None:
        """Raises an error if the tables of a projection could keep the content."""
        known = {each.name for each in self._projections}
        unknown = sorted({*connection.scalars(select(projection_positions.c.name))} - known)
        name = database_name(self._engine)
        if unknown:
            raise PersistenceError(
                f"{name} has the projection {unknown[0]}, whose tables could keep the content: redact from the "
                "application that has this projection, or delete its row from projection_positions if none has"
            )
        for each in self._projections:
            position = position_of(connection, each)
            if position is not None and position.version != each.version:
                raise PersistenceError(
                    f"{name} has version {position.version} of the projection {each.name}, and this program has "
                    f"{each.version}: open the database with maintain_projections=True first"
                )

    def _write(self, change: "_Change", progress: Progress | None) -> None:
        meter = Meter(progress, change.end * len(self._projections))
        reads = self._engine.execution_options(**{READ_ONLY: True})

        def work(own: OwnTransaction) -> int:
            with self._backend.deleted_content_overwritten(own.connection):
                return self._builder.build(self._projections, own, meter=meter, pages=PAGES_A_COMMIT, change=change)

        with_own_commit(reads, self._driver_errors, work, advice="call redact again")

    def _are_redacted(self, sequences: set[int]) -> bool:
        """Returns whether one of the events was redacted."""
        if not sequences:
            return False
        with self._driver_errors, self._reads.begin() as connection:
            return not sequences.isdisjoint(redacted_within(connection, min(sequences), max(sequences)))

    def _erase(self, *, vacuum: bool) -> str | None:
        try:
            with self._driver_errors:
                return self._backend.erase_deleted_content(self._engine, vacuum=vacuum)
        except StoreUnavailable as error:
            return f"the events are redacted, but not what was deleted earlier: {error}; call vacuum(full=True) later"


class _Change:
    """The rows that a redaction writes. See `LogChange`.

    Attributes:
        end: The end of the log when it was planned.
        rows: The new type and payload, by sequence.
        unchanged: The sequences of the events that match the query and have no content, or have only markers.
    """

    def __init__(
        self,
        engine: Engine,
        codec: EventCodec[Any],
        index: TagIndex,
        query: EventQuery,
        rule: Rule,
        by: str,
        seen: int,
        end: int,
    ) -> None:
        self.end = end
        self.rows: dict[int, tuple[str, str]] = {}
        self.unchanged: set[int] = set()
        self._undecodable: set[int] = set()
        self._backend = backend_of(engine)
        self._log = LogPages(engine, DriverErrors(engine))
        self._codec = codec
        self._index = index
        self._query = query
        self._matcher = index.matcher(query)
        self._rule = rule
        self._by = by
        self._seen = seen

    def result(self, remains: str | None) -> Redaction:
        return Redaction(len(self.rows), tuple(sorted(self._undecodable)), self.end, remains)

    def consider(self, row: LogRow) -> None:
        """Applies the rule to a row that matches the query."""
        sequence, event_type, payload, _ = row
        try:
            event = self._codec.decode(sequence, event_type, payload)
        except EventDecodeError:
            self._undecodable.add(sequence)
            return
        replaced = self._rule(event)
        if type(replaced) is not type(event):
            raise TypeError(
                f"the rule has made a {type(replaced).__name__} of event {sequence}, which is a "
                f"{type(event).__name__}: it must return an event of the same class"
            )
        try:
            (before, after) = zip(*self._codec.encode([event, replaced]), strict=True)
        except EventEncodeError as error:
            raise ValueError(f"the rule returns what cannot be stored for event {sequence}: {error.reason}") from None
        if after == before:
            self.unchanged.add(sequence)
        else:
            self.rows[sequence] = after

    def changed(self, page: list[LogRow]) -> list[LogRow]:
        for row in page:
            if row[0] > self.end and row[0] not in self.rows and self._matcher.matches(row):
                self.consider(row)
        return [(row[0], *new, row[3]) if (new := self.rows.get(row[0])) is not None else row for row in page]

    def write(self, connection: Connection, problems: Sequence[Problem]) -> None:
        if problem := self._first_contradiction(connection, problems):
            raise ValueError(
                f"the rule makes event {problem.sequence} contradict others ({problem.reason}): it must keep the "
                "identifiers"
            )
        if not begin_step(connection, self._seen):
            raise LogChanged
        moment = format_timestamp(datetime.now(UTC))
        rule = (
            f"{getattr(self._rule, '__module__', '')}.{getattr(self._rule, '__qualname__', type(self._rule).__name__)}"
        )
        sequences = sorted(self.rows)
        record_redaction(connection, sequences, moment=moment, by=self._by, query=self._query, rule=rule)
        with self._backend.changes_to_log(connection):
            for some in _batches(sequences, WRITTEN_AT_ONCE):
                for before in self._stored(connection, some):
                    self._index.replace(connection, [(row, *self.rows[row[0]]) for row in before])
                REPLACE_EVENT.run(connection, [(*self.rows[sequence], sequence) for sequence in some])

    def _first_contradiction(self, connection: Connection, problems: Sequence[Problem]) -> Problem | None:
        """Returns the first problem of an event that this program can decode: others may know more types of events."""
        reasons = {problem.sequence: problem for problem in problems}
        for some in _batches(sorted(reasons), WRITTEN_AT_ONCE):
            for page in self._stored(connection, some):
                for sequence, event_type, payload, _ in self.changed(page):
                    with suppress(EventDecodeError):
                        self._codec.decode(sequence, event_type, payload)
                        return reasons[sequence]
        return None

    def _stored(self, connection: Connection, sequences: list[int]) -> Iterator[list[LogRow]]:
        while sequences and (page := self._log.read_rows(connection, sequences)):
            yield page
            sequences = [each for each in sequences if each > page[-1][0]]  # large events end a page early


def _batches(items: Sequence[ItemT], size: int) -> Iterator[list[ItemT]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])
