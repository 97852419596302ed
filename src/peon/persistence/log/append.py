"""Appends within a transaction at the end of the log: what they depend on, their rows, what follows from them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import chain, groupby, islice, repeat
from typing import Any, Generic, NamedTuple
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.engine import begin_writing
from peon.persistence.errors import CommandConflict, ConcurrencyError, EventDecodeError, PersistenceError
from peon.persistence.log.codec import EventCodec, EventT
from peon.persistence.log.head import LogEnd
from peon.persistence.log.idempotency import Receipt, add_receipt, difference, receipt_of
from peon.persistence.log.pages import LogPages
from peon.persistence.log.query import TYPE, AppendCondition, EventQuery, canonical
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.log.tag_index import TagIndex, TakesLong
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.schema.timestamps import format_timestamp

AppendHook = Callable[[Connection, list[StoredEvent[Any]]], None]


class AppendRequest(NamedTuple, Generic[EventT]):
    """A batch, its columns, and what it depends on.

    Attributes:
        insists: Have what its condition needs indexed and read within the transaction, instead of `TakesLong`.
        holds_until: No event above the position of its condition matches up to here, as was seen before.
    """

    batch: list[EventT]
    event_types: list[str]
    payloads: list[str]
    condition: AppendCondition | None = None
    command_id: UUID | None = None
    insists: bool = False
    holds_until: int = 0

    @property
    def depends(self) -> bool:
        return self.condition is not None or self.command_id is not None


class Appender(Generic[EventT]):
    """Performs the append requests of one store.

    Args:
        on_append: As of `EventStore`.

    Attributes:
        index: Serves conditions.
    """

    def __init__(
        self, engine: Engine, codec: EventCodec[EventT], on_append: AppendHook | None, driver_errors: DriverErrors
    ) -> None:
        self._dialect = engine.dialect
        self._codec = codec
        self._on_append = on_append
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)
        self.index = TagIndex(engine, driver_errors)

    def request(
        self, events: Iterable[EventT], condition: AppendCondition | None, command_id: UUID | str | None
    ) -> AppendRequest[EventT]:
        if isinstance(events, BaseModel):
            raise TypeError(f"append_all takes a list of events: [{type(events).__name__}(…)]")
        batch = list(events)
        columns = self._codec.encode(with_pauses(batch, self._dialect))
        if condition is None and command_id is None:
            return AppendRequest(batch, *columns)
        if condition is not None:
            if not isinstance(condition, AppendCondition):
                raise TypeError(f"condition is an AppendCondition, not {type(condition).__name__}")
            require_tags(condition.query, self._codec)
        command = None if command_id is None else canonical("command_id", command_id)
        return AppendRequest(batch, *columns, condition, command)

    def append_within(self, connection: Connection, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        with self._driver_errors:
            begin_writing(connection)
            if request.condition is not None and not request.batch:
                _require_read_committed(connection)
            with connection.begin_nested():
                # An index that is filled in another transaction would wait for this one for ever.
                return self._append(LogEnd.join(connection), request._replace(insists=True))

    def perform(
        self, end: LogEnd, requests: list[AppendRequest[EventT]]
    ) -> list[list[StoredEvent[EventT]] | Exception]:
        """Performs the requests of several threads, in their order; those that depend on nothing go together.

        Returns for each what it has stored, or why it must not be performed.
        """
        if len(requests) == 1 and not requests[0].depends:  # most are, and this is on the way of each
            return [self._add(end, *requests[0][:3])]
        outcomes: list[list[StoredEvent[EventT]] | Exception] = []
        for depends, group in groupby(requests, key=lambda request: request.depends):
            if not depends:
                outcomes += self._add_together(end, list(group))
                continue
            for request in group:
                try:
                    earlier = self._decide(end, request)
                except (ConcurrencyError, CommandConflict, EventDecodeError, TakesLong) as error:
                    outcomes.append(error)  # before anything was written: its neighbours need not know
                else:
                    outcomes.append(self._carry_out(end, request) if earlier is None else earlier)
        return outcomes

    def _append(self, end: LogEnd, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        if not request.depends:
            return self._add(end, request.batch, request.event_types, request.payloads)
        earlier = self._decide(end, request)
        return self._carry_out(end, request) if earlier is None else earlier

    def _decide(self, end: LogEnd, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]] | None:
        """Returns what the command has stored before, if it has; raises where the request must not be carried out."""
        end.wait()
        if request.command_id is not None and (receipt := receipt_of(end.connection, request.command_id)):
            rows = self._log.read_range(end.connection, receipt.first_sequence, receipt.events)
            stored = list(decoded([rows], self._codec, keep=False))
            if reason := difference([earlier.event for earlier in stored], request.batch):
                raise CommandConflict(request.command_id, reason)
            return stored
        if (condition := request.condition) is not None:
            after = max(condition.after, request.holds_until)
            sequence = self._first_match(end, condition.query, after, insists=request.insists)
            if sequence is not None:
                raise ConcurrencyError(sequence, condition.after)
        return None

    def _first_match(self, end: LogEnd, query: EventQuery, after: int, *, insists: bool) -> int | None:
        try:
            return self.index.first_match(end.connection, query, after, end.last, patient=insists)
        except TakesLong:
            if not insists:
                raise
        self.index.extend(end.connection, query.wanted())
        return self.index.first_match(end.connection, query, after, end.last, patient=True)

    def _carry_out(self, end: LogEnd, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        batch, event_types, payloads, _, command_id, *_ = request
        stored = self._add(end, batch, event_types, payloads) if batch else []
        if command_id is not None:
            first, moment = (stored[0].sequence, stored[0].stored_at) if stored else (0, datetime.now(UTC))
            add_receipt(end.connection, command_id, Receipt(first, len(stored)), format_timestamp(moment))
        return stored

    def _add_together(self, end: LogEnd, requests: list[AppendRequest[EventT]]) -> list[list[StoredEvent[EventT]]]:
        """Adds the batches of several threads as one, and returns to each its own."""
        columns = [
            list(chain.from_iterable(column)) for column in zip(*(request[:3] for request in requests), strict=True)
        ]
        stored = iter(self._add(end, *columns))
        return [list(islice(stored, len(request.batch))) for request in requests]

    def _add(
        self, end: LogEnd, batch: list[EventT], event_types: list[str], payloads: list[str]
    ) -> list[StoredEvent[EventT]]:
        first, stored_at = end.add(event_types, payloads)
        if len(batch) == 1:
            stored = [StoredEvent(first, batch[0], stored_at)]
        else:
            places = zip(range(first, first + len(batch)), batch, repeat(stored_at), strict=False)
            # Two thirds of the time of calling StoredEvent: no Python code runs for an event.
            stored = list(map(tuple.__new__, repeat(StoredEvent), places))
        if self._on_append is not None:
            self._on_append(end.connection, stored)
        return stored


def _require_read_committed(connection: Connection) -> None:
    """With one snapshot for all, a transaction that stores nothing would not notice what others have stored."""
    if connection.dialect.name != "sqlite" and connection.get_isolation_level() != "READ COMMITTED":
        raise PersistenceError("a condition without events needs a transaction with the isolation level READ COMMITTED")


def require_tags(query: EventQuery, codec: EventCodec[Any]) -> None:
    """Raises `ValueError` for a query by a tag that the codec does not name."""
    if unknown := set(query.wanted()) - codec.tags - {TYPE}:
        known = ", ".join(sorted(codec.tags)) or "none"
        raise ValueError(f"{min(unknown)} is not a tag of these events; the codec names {known}")
