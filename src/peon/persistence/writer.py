"""The one transaction at a time in which a store writes, and which threads share."""

import os
from collections.abc import Callable
from copy import copy
from threading import Lock, get_ident
from typing import Any, Generic, Literal, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine

from peon.persistence.availability import DriverErrors
from peon.persistence.engine import begin_writing, is_memory
from peon.persistence.errors import PersistenceError, StoreUnavailable

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

Perform = Callable[[Connection, list[RequestT]], list[ResultT]]

MAXIMUM_SHARED = 64
"""Requests that share a transaction."""

_writers: WeakSet["Writer[Any, Any]"] = WeakSet()
_inherited: list[object] = []


class Writer(Generic[RequestT, ResultT]):
    """Performs requests of any number of threads, one transaction at a time.

    Threads queue up here, as SQLite's own waiting is polling, and unfair. The first performs all requests that wait
    in one transaction (group commit), so that they share the wait for the disk, and hands over to the first of
    those that came meanwhile. Where a shared transaction fails, each request gets one of its own: nobody fails for
    another's sake.

    On an SQLite file the connection is kept from one transaction to the next: to take it from the pool and to
    give it back costs a fifth of an append of one event, fsync included (see docs/decisions.md). After any error
    it is given back, and the next transaction takes another. A database in memory has only this connection,
    and readers need it too; a connection to a server may have died meanwhile, which the pool finds out.

    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._driver_errors = driver_errors
        self._keep = engine.dialect.name == "sqlite" and not is_memory(engine.url)
        self.start_anew()
        _writers.add(self)

    def start_anew(self) -> None:
        """Forgets the threads that write and wait, and the connection: in a forked child they are not there."""
        self._queue = Lock()
        self._waiting: list[_Ticket[RequestT, ResultT]] = []
        self._led = False
        self._transaction = Lock()
        self._owner: int | None = None
        self._connection: Connection | None = None
        self._stage: Literal["beginning", "performing", "committing"] = "beginning"

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT]) -> ResultT:
        """Performs a request, and returns its result when that is durable; raises what `perform` raises.

        Args:
            perform: Performs requests within a transaction, and returns their results in the same order. It is
                given each time, and not kept: a store that nobody uses any more gives its connection back at once.
        """
        if self._owner == get_ident():
            # A logging handler that stores what the engine logs comes back here, and would wait for itself.
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by a logging handler perhaps: "
                "call it later, or from another thread"
            )
        ticket: _Ticket[RequestT, ResultT] | None = None
        with self._queue:
            if self._led:
                ticket = _Ticket(request)
                self._waiting.append(ticket)
            self._led = True
        if ticket is not None:
            return self._wait(ticket, perform)
        try:
            with self._transaction:
                return self._transact([request], perform)[0]
        finally:
            with self._queue:
                self._promote_the_first()

    def _wait(self, ticket: "_Ticket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> ResultT:
        try:
            ticket.turn.acquire()
            if ticket.leads:
                self._lead(perform)
        except BaseException:
            self._leave(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def close(self) -> None:
        """Gives the connection back to the pool; the next transaction takes one again."""
        with self._transaction:
            self._give_back()

    @property
    def connection(self) -> Connection | None:
        """The connection that is kept."""
        return self._connection

    def _lead(self, perform: Perform[RequestT, ResultT]) -> None:
        tickets: list[_Ticket[RequestT, ResultT]] = []
        try:
            with self._queue:
                self._stage = "beginning"
                tickets, self._waiting = self._waiting[:MAXIMUM_SHARED], self._waiting[MAXIMUM_SHARED:]
            with self._transaction:
                self._serve(tickets, perform)
        finally:
            self._hand_over(tickets)

    def _hand_over(self, tickets: list["_Ticket[RequestT, ResultT]"]) -> None:
        # They are left over where this thread was interrupted, which the others were not.
        unserved = [ticket for ticket in tickets[1:] if not ticket.served]
        in_doubt = self._stage == "committing"
        with self._queue:
            if not in_doubt:
                self._waiting[:0] = unserved
            self._promote_the_first()
        for ticket in unserved if in_doubt else ():
            ticket.error = StoreUnavailable(
                "the thread that shared its commit was interrupted: read the log to see whether it was stored"
            )
            ticket.served = True
        for ticket in tickets[1:]:
            if ticket.served:
                ticket.turn.release()

    def _promote_the_first(self) -> None:
        if not self._waiting:
            self._led = False
        else:
            self._waiting[0].leads = True
            self._waiting[0].turn.release()

    def _leave(self, ticket: "_Ticket[RequestT, ResultT]") -> None:
        """Takes back the request of a thread that was interrupted while it waited."""
        with self._queue:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                if ticket.leads:
                    self._promote_the_first()

    def _serve(self, tickets: list["_Ticket[RequestT, ResultT]"], perform: Perform[RequestT, ResultT]) -> None:
        try:
            results = self._transact([ticket.request for ticket in tickets], perform)
        except Exception as error:
            if len(tickets) == 1:
                tickets[0].error = error
            elif self._stage == "performing":
                for ticket in tickets:
                    self._serve([ticket], perform)
                return
            else:  # no request's fault, and to wait for a lock once more for each would take long
                for ticket in tickets:
                    ticket.error = copy(error)
                    ticket.error.__cause__ = error.__cause__
        else:
            for ticket, result in zip(tickets, results, strict=True):
                ticket.result = result
        for ticket in tickets:
            ticket.served = True
        self._stage = "beginning"

    def _transact(self, requests: list[RequestT], perform: Perform[RequestT, ResultT]) -> list[ResultT]:
        committed = False
        self._stage = "beginning"
        self._owner = get_ident()
        with self._driver_errors:
            try:
                connection = self._connection
                if connection is None:
                    connection = self._connection = self._engine.connect()
                begin_writing(connection)
                self._stage = "performing"
                results = perform(connection, requests)
                self._stage = "committing"
                connection.commit()
                committed = True
            finally:
                self._owner = None
                if not (committed and self._keep):
                    self._give_back()
        return results

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            # SQLAlchemy takes a transaction whose commit failed to be over; SQLite may have it open still.
            self._engine.dialect.do_rollback(connection.connection)
        except Exception:
            connection.invalidate()
        finally:
            connection.close()


class _Ticket(Generic[RequestT, ResultT]):
    """A request, and what came of it.

    Attributes:
        turn: Held until the request is served, or its thread is to serve those that wait.
        leads: Whether its thread is to do that.
    """

    __slots__ = ("error", "leads", "request", "result", "served", "turn")

    def __init__(self, request: RequestT) -> None:
        self.request = request
        self.turn = Lock()
        self.turn.acquire()
        self.leads = False
        self.served = False
        self.result: ResultT | None = None
        self.error: Exception | None = None


def _start_anew() -> None:
    for writer in _writers:
        _inherited.append(writer.connection)
        writer.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
