"""The one transaction at a time in which a store writes, and which threads share."""

import os
from itertools import pairwise
from threading import Lock, get_ident
from typing import Any, Generic
from weakref import WeakSet

from sqlalchemy import Connection, Engine

from peon.persistence.availability import DriverErrors
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.writing.transactions import AppendTransactions, Perform, RequestT, ResultT, Ticket

MAXIMUM_SHARED = 64
"""Requests that share a transaction."""

COMPANY = 0.00025
"""Seconds without a newcomer after which nobody else is expected; several times what a thread takes to come back."""

_writers: WeakSet["ThreadWriter[Any, Any]"] = WeakSet()
_inherited: list[object] = []


class ThreadWriter(Generic[RequestT, ResultT]):
    """Performs requests of any number of threads, one transaction at a time.

    Threads queue up here, as SQLite's own waiting is polling, and unfair. The first performs all requests that wait
    in one transaction (group commit), so that they share the wait for the disk, and hands over to the first of
    those that came meanwhile. It waits for as many as shared the last transaction, while they keep coming: otherwise
    the first that is back would have a commit for itself. Where a shared transaction fails, each request gets one of
    its own: nobody fails for another's sake.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._driver_errors = driver_errors
        self.start_anew()
        _writers.add(self)

    def start_anew(self) -> None:
        """Forgets the threads that write and wait, and the connection: in a forked child they are not there."""
        self._queue = Lock()
        self._waiting: list[_ThreadTicket[RequestT, ResultT]] = []
        self._led = False
        self._expected = 1
        self._complete: Lock | None = None
        self._lock = Lock()
        self._owner: int | None = None
        self._transactions: AppendTransactions[RequestT, ResultT] = AppendTransactions(
            self._engine, self._driver_errors
        )

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT]) -> ResultT:
        if self._owner == get_ident():
            # A logging handler that stores what the engine logs comes back here, and would wait for itself.
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by a logging handler perhaps: "
                "call it later, or from another thread"
            )
        ticket: _ThreadTicket[RequestT, ResultT] | None = None
        with self._queue:
            if self._led or self._expected > 1:
                ticket = _ThreadTicket(request)
                self._waiting.append(ticket)
                if not self._led:
                    self._promote_the_first()
                elif self._complete is not None and len(self._waiting) >= self._expected:
                    self._complete.release()
                    self._complete = None
            self._led = True
        if ticket is not None:
            return self._wait(ticket, perform)
        try:
            with self._lock:
                self._owner = get_ident()
                try:
                    (outcome,) = self._transactions.transact([request], perform)
                finally:
                    self._owner = None
        finally:
            with self._queue:
                self._promote_the_first()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _wait(self, ticket: "_ThreadTicket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> ResultT:
        try:
            ticket.turn.acquire()
            ticket.wake_the_next()
            if ticket.leads:
                self._lead(perform)
        except BaseException:
            self._leave(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def close(self) -> None:
        with self._lock:
            self._transactions.give_back()

    @property
    def connection(self) -> Connection | None:
        """The connection that is kept."""
        return self._transactions.connection

    def _lead(self, perform: Perform[RequestT, ResultT]) -> None:
        self._wait_for_company()
        tickets: list[_ThreadTicket[RequestT, ResultT]] = []
        try:
            with self._queue:
                self._transactions.stage = "beginning"
                tickets, self._waiting = self._waiting[:MAXIMUM_SHARED], self._waiting[MAXIMUM_SHARED:]
                self._expected = len(tickets)
            with self._lock:
                self._owner = get_ident()
                try:
                    self._transactions.serve(tickets, perform)
                finally:
                    self._owner = None
        finally:
            self._hand_over(tickets)

    def _wait_for_company(self) -> None:
        complete = Lock()
        complete.acquire()
        with self._queue:
            came = len(self._waiting)
            if came >= self._expected:
                return
            self._complete = complete
        try:
            while not complete.acquire(timeout=COMPANY):
                before, came = came, len(self._waiting)
                if came == before:
                    return
        finally:
            with self._queue:
                self._complete = None

    def _hand_over(self, tickets: list["_ThreadTicket[RequestT, ResultT]"]) -> None:
        in_doubt = self._transactions.stage == "committing"
        with self._queue:
            # They are left over where this thread was interrupted, which the others were not.
            unserved = [ticket for ticket in tickets[1:] if not ticket.served and not ticket.left]
            if not in_doubt:
                self._waiting[:0] = unserved
            self._promote_the_first()
        for ticket in unserved if in_doubt else ():
            ticket.error = StoreUnavailable(
                "the thread that shared its commit was interrupted: read the log to see whether it was stored"
            )
            ticket.served = True
        self._wake([ticket for ticket in tickets[1:] if ticket.served])

    def _wake(self, tickets: list["_ThreadTicket[RequestT, ResultT]"]) -> None:
        """Has each thread wake the next.

        All at once, they would wake up to wait for Python's global lock: so 16 threads reached two thirds as much.
        """
        with self._queue:
            tickets = [ticket for ticket in tickets if not ticket.left]
            for ticket, following in pairwise(tickets):
                ticket.following = following
        if tickets:
            tickets[0].turn.release()

    def _promote_the_first(self) -> None:
        if not self._waiting:
            self._led = False
        else:
            self._waiting[0].leads = True
            self._waiting[0].turn.release()

    def _leave(self, ticket: "_ThreadTicket[RequestT, ResultT]") -> None:
        """Takes back the request of a thread that was interrupted while it waited."""
        with self._queue:
            ticket.left = True
            ticket.wake_the_next()
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                if ticket.leads:
                    self._promote_the_first()


class _ThreadTicket(Ticket[RequestT, ResultT]):
    """The request of a thread that waits.

    Attributes:
        turn: Held until the request is served, or its thread is to serve those that wait.
        leads: Whether its thread is to do that.
        following: Whose thread this one's is to wake.
        left: Whether its thread was interrupted, and waits no more.
    """

    __slots__ = ("following", "leads", "left", "turn")

    def __init__(self, request: RequestT) -> None:
        super().__init__(request)
        self.turn = Lock()
        self.turn.acquire()
        self.leads = False
        self.following: _ThreadTicket[RequestT, ResultT] | None = None
        self.left = False

    def wake_the_next(self) -> None:
        following, self.following = self.following, None
        if following is not None:
            following.turn.release()


def _start_anew() -> None:
    for writer in _writers:
        _inherited.append(writer.connection)
        writer.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
