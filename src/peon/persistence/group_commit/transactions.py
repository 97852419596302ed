"""Transactions at the end of the log, on a connection that is kept, and repeated where that is safe."""

from collections.abc import Callable, Sequence
from copy import copy
from itertools import count
from typing import Generic, Literal, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import LogHead
from peon.persistence.backends.retries import ATTEMPTS, give_back, is_safe_to_repeat, pause_after
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.runtime.event_loop import pause

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

Perform = Callable[[LogHead, list[RequestT]], Sequence[ResultT | Exception]]
"""Performs requests in a transaction, and returns for each its result, or the error of it alone."""


class Ticket(Generic[RequestT, ResultT]):
    """A request, and what came of it."""

    __slots__ = ("error", "request", "result", "served")

    def __init__(self, request: RequestT) -> None:
        self.request = request
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
    """Performs requests, any number in one transaction, one transaction at a time.

    The connection is kept from one transaction to the next: to take it from the pool and to give it back costs a
    fifth of an append of one event to an SQLite file, fsync included (see docs/decisions.md). After any error it is
    given back, and the next transaction takes another. A database in memory has only this connection, and readers
    need it too.

    Attributes:
        stage: How far the transaction has come.
        connection: The one that is kept.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._keep = not is_memory(engine.url)
        self.stage: Literal["beginning", "performing", "committing"] = "beginning"
        self.connection: Connection | None = None

    def serve(self, tickets: Sequence[Ticket[RequestT, ResultT]], perform: Perform[RequestT, ResultT]) -> None:
        """Performs the requests in one transaction, or, where one of them makes that fail, each in its own."""
        try:
            outcomes = self.transact([ticket.request for ticket in tickets], perform)
        except Exception as error:
            if len(tickets) > 1 and self.stage == "performing":
                for ticket in tickets:
                    self.serve([ticket], perform)
                return
            # No request's fault, and to wait for a lock once more for each would take long.
            outcomes = [error, *(self._for_another(error) for _ in tickets[1:])]
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.settle(outcome)
        self.stage = "beginning"

    def _for_another(self, error: Exception) -> Exception:
        """An exception that several threads raise would collect the tracebacks of all."""
        if isinstance(error, PersistenceError):
            copied = copy(error)
            copied.__cause__ = error.__cause__
            return copied
        # Of a listener of the application's, or of SQLAlchemy where the thread was interrupted.
        other = StoreUnavailable(
            f"{database_name(self._engine)}: the commit that it shared ended with {type(error).__name__}: read the log "
            "to see whether it was stored"
        )
        other.__cause__ = error
        return other

    def transact(self, requests: list[RequestT], perform: Perform[RequestT, ResultT]) -> Sequence[ResultT | Exception]:
        """Performs the requests in one transaction; what that raises undoes it."""
        for attempt in count(1):
            self.stage = "beginning"
            committed = repeatable = False
            try:
                with self._driver_errors:
                    try:
                        outcomes = self._perform(requests, perform)
                        committed = True
                    except Exception as error:
                        repeatable = self._is_safe_to_repeat(error)
                        raise
                return outcomes
            except Exception:
                if attempt == ATTEMPTS or not repeatable:
                    raise
            finally:
                if not (committed and self._keep):
                    self.give_back()
            pause(pause_after(attempt), self._engine.dialect)
        raise AssertionError

    def _perform(self, requests: list[RequestT], perform: Perform[RequestT, ResultT]) -> Sequence[ResultT | Exception]:
        if self.connection is None:
            self.connection = self._backend.connect_to_append(self._engine)
        head = self._backend.begin_append(self.connection)
        self.stage = "performing"
        try:
            outcomes = perform(head, requests)
        except Exception as error:
            if head.is_waiting and self._driver_errors.is_lock_timeout(error):
                self.stage = "beginning"  # the lock was not acquired, as when BEGIN IMMEDIATE fails on SQLite
            raise
        self._backend.require_committable(self.connection)
        self.stage = "committing"
        self.connection.commit()
        return outcomes

    def _is_safe_to_repeat(self, error: Exception) -> bool:
        return is_safe_to_repeat(
            error,
            self._engine,
            self._driver_errors,
            self.connection,
            committing=self.stage == "committing",
            advice="read the log, or repeat the call with the same command_id, which stores nothing twice",
        )

    def give_back(self) -> None:
        """Gives the connection back to the pool; the next transaction takes one again."""
        connection, self.connection = self.connection, None
        if connection is not None:
            give_back(connection)
