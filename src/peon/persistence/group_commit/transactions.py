"""Transactions at the end of the log, on a kept connection, repeated when that is safe."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from itertools import count
from typing import Generic, Literal, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import LogHead
from peon.persistence.backends.retries import (
    ATTEMPTS,
    LONG_WAIT_SECONDS,
    end_interrupted,
    give_back,
    pause_after,
    reason_to_repeat,
    report_retry,
    report_wait,
)
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.runtime.event_loop import pause
from peon.persistence.runtime.instrumentation import Operation, RetryReason
from peon.persistence.runtime.telemetry import telemetry_of

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

Perform = Callable[[LogHead, list[RequestT]], Sequence[ResultT | Exception]]
"""Performs requests in a transaction; returns the result of each, or the error that concerns only that one."""


class Ticket(Generic[RequestT, ResultT]):
    """A request, what is to be told about it, and its outcome."""

    __slots__ = ("error", "operation", "request", "result", "served")

    def __init__(self, request: RequestT, operation: Operation) -> None:
        self.request = request
        self.operation = operation
        self.served = False
        self.result: ResultT | None = None
        self.error: Exception | None = None

    def settle(self, outcome: ResultT | Exception) -> None:
        if isinstance(outcome, Exception):
            self.error = outcome
        else:
            self.result = outcome
        self.served = True


class AppendTransactions(Generic[RequestT, ResultT]):
    """Performs any number of requests in one transaction, one transaction at a time.

    The connection is kept from one transaction to the next: taking it from the pool and returning it costs a fifth
    of an append of one event to an SQLite file, fsync included (docs/explanation/decisions/appends.md). After an
    error it is returned, and the next transaction takes another one. A database in memory has a single connection,
    which readers need too, so there it is not kept.

    Attributes:
        stage: The stage that the current transaction has reached.
        connection: The kept connection.
        lock_seconds: How long the last transaction waited for the lock that orders appends.
        reports: What is to be logged when no lock is held: a handler may append.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._keep = not is_memory(engine.url)
        self.stage: Literal["beginning", "performing", "committing"] = "beginning"
        self.connection: Connection | None = None
        self.lock_seconds = 0.0
        self.reports: deque[Callable[[], None]] = deque()
        self._telemetry = telemetry_of(engine)

    def serve(self, tickets: Sequence[Ticket[RequestT, ResultT]], perform: Perform[RequestT, ResultT]) -> None:
        """Performs the requests in one transaction; if one of them makes it fail, each in a transaction of its own."""
        try:
            outcomes = self.transact([ticket.request for ticket in tickets], perform)
        except Exception as error:
            if len(tickets) > 1 and self.stage == "performing":
                for ticket in tickets:
                    self.serve([ticket], perform)
                return
            # Not caused by a request. Trying each by itself would wait for the lock again and again.
            outcomes = [error, *(self._for_another(error) for _ in tickets[1:])]
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.operation.committed(len(tickets), self.lock_seconds)
            ticket.settle(outcome)
        self.stage = "beginning"

    def _for_another(self, error: Exception) -> Exception:
        """Returns an error for another thread. A shared exception would collect the tracebacks of all threads."""
        if isinstance(error, PersistenceError):
            copied = copy(error)
            copied.__cause__ = error.__cause__
            return copied
        # Raised by a listener of the application, or by SQLAlchemy when the thread was interrupted.
        other = StoreUnavailable(
            f"{database_name(self._engine)}: the shared commit ended with {type(error).__name__}: read the log "
            "to see whether the events were stored"
        )
        other.__cause__ = error
        return other

    def transact(self, requests: list[RequestT], perform: Perform[RequestT, ResultT]) -> Sequence[ResultT | Exception]:
        """Performs the requests in one transaction; an exception rolls it back."""
        for attempt in count(1):
            self.stage = "beginning"
            committed = False
            reason: RetryReason | None = None
            try:
                with self._driver_errors:
                    try:
                        outcomes = self._perform(requests, perform)
                        committed = True
                    except Exception as error:
                        reason = self._reason_to_repeat(error)
                        raise
                    except BaseException:
                        if self.connection is not None:
                            end_interrupted(self.connection)
                        raise
                return outcomes
            except Exception:
                if attempt == ATTEMPTS or reason is None:
                    raise
                self.reports.append(partial(report_retry, self._engine, reason, attempt))
            finally:
                if not (committed and self._keep):
                    self.give_back()
            pause(pause_after(attempt), self._engine.dialect)
        raise AssertionError

    def _perform(self, requests: list[RequestT], perform: Perform[RequestT, ResultT]) -> Sequence[ResultT | Exception]:
        if self.connection is None:
            self.connection = self._backend.connect_to_append(self._engine)
        locked_at: float | None = None
        began = time.monotonic()
        try:
            head = self._backend.begin_append(self.connection)
            locked_at = None if head.is_waiting else time.monotonic()
            self.stage = "performing"
            try:
                outcomes = perform(head, requests)
            except Exception as error:
                if head.is_waiting and self._driver_errors.is_lock_timeout(error):
                    self.stage = "beginning"  # the lock was not acquired, as when BEGIN IMMEDIATE fails on SQLite
                raise
            finally:
                locked_at = locked_at or head.locked_at
        finally:
            self._waited((locked_at or time.monotonic()) - began)
        self._backend.require_committable(self.connection)
        self.stage = "committing"
        self.connection.commit()
        return outcomes

    def _waited(self, seconds: float) -> None:
        self.lock_seconds = seconds
        self._telemetry.waited(seconds)
        if seconds >= LONG_WAIT_SECONDS:
            self.reports.append(partial(report_wait, self._engine, seconds))

    def report(self) -> None:
        """Logs what the last transactions met. Call it without a lock."""
        reports: list[Callable[[], None]] = []
        with suppress(IndexError):  # another thread does the same
            while True:
                reports.append(self.reports.popleft())
        for log in reports:
            log()  # a handler that appends gets here again

    def _reason_to_repeat(self, error: Exception) -> RetryReason | None:
        return reason_to_repeat(
            error,
            self._engine,
            self._driver_errors,
            self.connection,
            committing=self.stage == "committing",
            advice="read the log, or repeat the call with the same command_id, which stores nothing twice",
        )

    def give_back(self) -> None:
        """Returns the connection to the pool; the next transaction takes another one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            give_back(connection)
