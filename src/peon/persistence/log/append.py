"""Appends at the head of the log: what they depend on, their rows, and what follows from them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import chain, groupby, islice, repeat
from typing import Any, Generic, NamedTuple
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import LogHead
from peon.persistence.errors import (
    CommandConflict,
    CommandEventsMerged,
    CommandEventsRemoved,
    ConcurrencyError,
    EventDecodeError,
    PositionBeyondEnd,
)
from peon.persistence.log.codec import EventCodec, EventT
from peon.persistence.log.idempotency import Command, Receipt, add_receipt, receipt_of
from peon.persistence.log.matcher import Matcher
from peon.persistence.log.pages import LogPages
from peon.persistence.log.query import AppendCondition, canonical
from peon.persistence.log.redacted import redacted_within
from peon.persistence.log.removed import were_compacted
from peon.persistence.log.stored_event import StoredEvent, decoded
from peon.persistence.log.tag_index import TagIndex
from peon.persistence.log.tag_walk import TakesLong
from peon.persistence.runtime.event_loop import with_pauses
from peon.persistence.runtime.instrumentation import Operation
from peon.persistence.schema.timestamps import format_timestamp, parse_timestamp

AppendHook = Callable[[Connection, list[StoredEvent[Any]]], None]


class CheckedCondition(NamedTuple):
    """An append condition, with what can be prepared before the write lock is acquired.

    Attributes:
        after: See `AppendCondition`.
        matcher: Of its query.
        holds_until: No event between `after` and this sequence matches, as was seen before.
    """

    after: int
    matcher: Matcher
    holds_until: int = 0


class AppendRequest(NamedTuple, Generic[EventT]):
    """A batch of events, its columns, and what it depends on.

    Attributes:
        may_take_long: Index and read whatever the condition needs within the transaction. Otherwise the append
            gives up with `TakesLong`.
        operation: Is told if the command was performed before.
    """

    batch: list[EventT]
    event_types: list[str]
    payloads: list[str]
    condition: CheckedCondition | None = None
    command: Command | None = None
    may_take_long: bool = False
    operation: Operation | None = None

    @property
    def is_conditional(self) -> bool:
        return self.condition is not None or self.command is not None


class Appender(Generic[EventT]):
    """Performs the append requests of one store.

    Args:
        on_append: See `EventStore`.

    Attributes:
        index: Answers conditions.
    """

    def __init__(
        self, engine: Engine, codec: EventCodec[EventT], on_append: AppendHook | None, driver_errors: DriverErrors
    ) -> None:
        self._dialect = engine.dialect
        self._backend = backend_of(engine)
        self._database = database_name(engine)
        self._codec = codec
        self._on_append = on_append
        self._driver_errors = driver_errors
        self._log = LogPages(engine, driver_errors)
        self.index = TagIndex(engine, driver_errors, codec.query_tags.lists)

    def request(
        self, events: Iterable[EventT], condition: AppendCondition | None, command_id: UUID | str | None
    ) -> AppendRequest[EventT]:
        if isinstance(events, BaseModel):
            raise TypeError(f"append_all takes a list of events: [{type(events).__name__}(…)]")
        batch = list(events)
        columns = self._codec.encode(with_pauses(batch, self._dialect))
        if condition is None and command_id is None:
            return AppendRequest(batch, *columns)
        checked = None
        if condition is not None:
            if not isinstance(condition, AppendCondition):
                raise TypeError(f"condition is an AppendCondition, not {type(condition).__name__}")
            self._codec.query_tags.require_possible(condition.query)
            checked = CheckedCondition(condition.after, self.index.matcher(condition.query))
        command = None if command_id is None else Command(canonical("command_id", command_id), batch)
        return AppendRequest(batch, *columns, checked, command)

    def checked_outside(self, request: AppendRequest[EventT]) -> AppendRequest[EventT]:
        """Returns a request whose condition was checked up to the present end of the log, without the write lock."""
        if (condition := request.condition) is not None:
            holds_until = self.index.holds_until(condition.matcher, condition.after)
            request = request._replace(condition=condition._replace(holds_until=holds_until))
        return request._replace(may_take_long=True)

    def append_within(self, connection: Connection, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        """Performs a request in the caller's transaction."""
        with self._driver_errors:
            self._backend.begin_writing(connection)
            if request.condition is not None and not request.batch:
                self._backend.require_current_reads(connection)
            with connection.begin_nested():
                # Filling the index in another transaction would wait for this one without end.
                head = self._backend.join_append(connection)
                return self._perform_one(head, request._replace(may_take_long=True))

    def perform(
        self, head: LogHead, requests: list[AppendRequest[EventT]]
    ) -> list[list[StoredEvent[EventT]] | Exception]:
        """Performs the requests of several threads in their order; unconditional ones are stored together.

        Returns:
            For each request the events that it stored, or the reason why it was refused.
        """
        if len(requests) == 1 and not requests[0].is_conditional:  # the common case, on the path of every append
            return [self._add(head, *requests[0][:3])]
        outcomes: list[list[StoredEvent[EventT]] | Exception] = []
        for is_conditional, group in groupby(requests, key=lambda request: request.is_conditional):
            if not is_conditional:
                outcomes += self._add_together(head, list(group))
                continue
            for request in group:
                try:
                    earlier = self._check(head, request)
                except (
                    ConcurrencyError,
                    PositionBeyondEnd,
                    CommandConflict,
                    CommandEventsRemoved,
                    EventDecodeError,
                    TakesLong,
                ) as error:
                    outcomes.append(error)  # nothing was written, so the other requests are not affected
                else:
                    outcomes.append(self._store(head, request) if earlier is None else earlier)
        return outcomes

    def _perform_one(self, head: LogHead, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        if not request.is_conditional:
            return self._add(head, request.batch, request.event_types, request.payloads)
        earlier = self._check(head, request)
        return self._store(head, request) if earlier is None else earlier

    def _check(self, head: LogHead, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]] | None:
        """Returns what the command stored earlier, if it did; raises if the request must be refused."""
        head.wait()
        if (command := request.command) is not None and (receipt := receipt_of(head.connection, command.id)):
            stored = self._stored_earlier(head.connection, command, receipt)
            if request.operation is not None:
                request.operation.repeated()
            return stored
        if (condition := request.condition) is not None:
            if condition.after > head.last:
                raise PositionBeyondEnd(self._database, condition.after, head.last)
            after = max(condition.after, condition.holds_until)
            sequence = self._first_match(head, condition.matcher, after, may_take_long=request.may_take_long)
            if sequence is not None:
                raise ConcurrencyError(sequence, condition.after)
        return None

    def _stored_earlier(self, connection: Connection, command: Command, receipt: Receipt) -> list[StoredEvent[EventT]]:
        rows = self._log.read_range(connection, receipt.first_sequence, receipt.events)
        own = [row for row in rows if row[3] == receipt.stored_at]
        removed = receipt.events - len(own)
        last = receipt.first_sequence + receipt.events - 1
        if receipt.events and were_compacted(connection, receipt.first_sequence, last):
            raise CommandEventsMerged(command.id, removed, receipt.events, parse_timestamp(receipt.stored_at))
        if removed:
            raise CommandEventsRemoved(command.id, removed, receipt.events)
        stored = list(decoded([own], self._codec, keep=False))
        reason = command.difference([earlier.event for earlier in stored])
        if reason and (redacted := redacted_within(connection, receipt.first_sequence, last)):
            indexes = {sequence - receipt.first_sequence for sequence in redacted}
            reason = command.difference([earlier.event for earlier in stored], indexes)
        if reason:
            raise CommandConflict(command.id, reason)
        return stored

    def _first_match(self, head: LogHead, matcher: Matcher, after: int, *, may_take_long: bool) -> int | None:
        try:
            return self.index.first_match(head.connection, matcher, after, head.last, may_take_long=may_take_long)
        except TakesLong:
            if not may_take_long:
                raise
        self.index.extend(head.connection, matcher.names)
        return self.index.first_match(head.connection, matcher, after, head.last, may_take_long=True)

    def _store(self, head: LogHead, request: AppendRequest[EventT]) -> list[StoredEvent[EventT]]:
        stored = self._add(head, *request[:3]) if request.batch else []
        if request.command is not None:
            first, moment = (stored[0].sequence, stored[0].stored_at) if stored else (0, datetime.now(UTC))
            add_receipt(head.connection, request.command.id, Receipt(first, len(stored), format_timestamp(moment)))
        return stored

    def _add_together(self, head: LogHead, requests: list[AppendRequest[EventT]]) -> list[list[StoredEvent[EventT]]]:
        """Stores the batches of several threads as one, and returns the stored events of each."""
        columns = [
            list(chain.from_iterable(column)) for column in zip(*(request[:3] for request in requests), strict=True)
        ]
        stored = iter(self._add(head, *columns))
        return [list(islice(stored, len(request.batch))) for request in requests]

    def _add(
        self, head: LogHead, batch: list[EventT], event_types: list[str], payloads: list[str]
    ) -> list[StoredEvent[EventT]]:
        first, stored_at = head.add(event_types, payloads)
        if len(batch) == 1:
            stored = [StoredEvent(first, batch[0], stored_at)]
        else:
            places = zip(range(first, first + len(batch)), batch, repeat(stored_at), strict=False)
            # Takes two thirds of the time of calling StoredEvent: no Python code runs for each event.
            stored = list(map(tuple.__new__, repeat(StoredEvent), places))
        if self._on_append is not None:
            self._on_append(head.connection, stored)
        return stored
