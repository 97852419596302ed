"""The one transaction at a time in which a store writes, and which threads share."""

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from threading import Lock, get_ident
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.group_commit.transactions import AppendTransactions, Perform, RequestT, ResultT, Ticket
from peon.persistence.runtime.forking import keep_inherited, reset_after_fork

MAXIMUM_SHARED = 64
"""Requests that share a transaction."""

COMPANY = 0.00025
"""Seconds without a newcomer after which nobody else is expected; several times what a thread takes to come back."""

VIGIL = 1.0
"""Seconds that a thread waits before it looks whether anybody leads."""

OutcomeT = TypeVar("OutcomeT")


class ThreadWriter(Generic[RequestT, ResultT]):
    """Performs requests of any number of threads, one transaction at a time.

    Threads queue up here, as SQLite's own waiting is polling, and unfair. The first performs all requests that wait
    in one transaction (group commit), so that they share the wait for the disk, and hands over to the first of
    those that came meanwhile. It waits for as many as shared the last transaction, while they keep coming: otherwise
    the first that is back would have a commit for itself. Where a shared transaction fails, each request gets one of
    its own: nobody fails for another's sake.

    A signal can interrupt the main thread between any two steps. So nothing depends on the thread that is to lead, or
    to wake another: who has waited for `VIGIL` looks, and leads where nobody does. Two that lead at once take turns.
    """

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._engine = engine
        self._driver_errors = driver_errors
        self._reset()
        reset_after_fork(self, ThreadWriter._reset_in_child)

    def _reset_in_child(self) -> None:
        """The threads that write and wait are the parent's, and so is the connection."""
        keep_inherited(self.connection)
        self._reset()

    def _reset(self) -> None:
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
        alone = False
        ticket: _ThreadTicket[RequestT, ResultT] | None = None
        try:
            with self._queue:
                alone = not self._led and self._expected == 1
                if not alone:
                    ticket = _ThreadTicket(request)
                    self._queue_up(ticket)
                self._led = True
            if ticket is not None:
                return self._wait(ticket, perform)
            with self._lock:
                (outcome,) = self._owned(self._transactions.transact, [request], perform)
        except BaseException:
            if ticket is not None:
                self._leave(ticket)
            raise
        finally:
            if alone:
                with self._queue:
                    self._promote_the_first()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        with self._lock:
            self._transactions.give_back()

    @property
    def connection(self) -> Connection | None:
        """The connection that is kept."""
        return self._transactions.connection

    def _queue_up(self, ticket: "_ThreadTicket[RequestT, ResultT]") -> None:
        self._waiting.append(ticket)
        if not self._led:
            self._promote_the_first()
        elif self._complete is not None and len(self._waiting) >= self._expected:
            complete, self._complete = self._complete, None
            complete.release()

    def _wait(self, ticket: "_ThreadTicket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> ResultT:
        while not ticket.served:
            if ticket.turn.acquire(timeout=VIGIL):
                ticket.wake_the_next()
            if ticket.leads:
                self._wait_for_company()
            elif self._lock.locked():
                continue
            if not ticket.served:
                self._lead(ticket, perform)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

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

    def _lead(self, mine: "_ThreadTicket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> None:
        tickets: list[_ThreadTicket[RequestT, ResultT]] = []
        with self._lock:
            try:
                with self._queue:
                    self._transactions.stage = "beginning"
                    tickets, self._waiting = self._waiting[:MAXIMUM_SHARED], self._waiting[MAXIMUM_SHARED:]
                    self._expected = max(len(tickets), 1)
                if tickets:
                    self._owned(self._transactions.serve, tickets, perform)
                if mine not in tickets and mine not in self._waiting and not mine.served:
                    _settle_in_doubt([mine])  # its leader was interrupted, and interrupted again while it cleared up
            finally:
                self._clear_up(mine, tickets)
        self._wake([ticket for ticket in tickets if ticket is not mine and ticket.served])

    def _owned(self, work: Callable[..., OutcomeT], *arguments: Any) -> OutcomeT:
        self._owner = get_ident()
        try:
            return work(*arguments)
        finally:
            self._owner = None

    def _clear_up(
        self, mine: "_ThreadTicket[RequestT, ResultT]", tickets: list["_ThreadTicket[RequestT, ResultT]"]
    ) -> None:
        """Hands over; and puts those back in line that are left over where this thread was interrupted."""
        with self._queue:
            left_over = [t for t in tickets if not t.served and t is not mine and not t.left]
            if self._transactions.stage == "committing":
                _settle_in_doubt(left_over)
            else:
                self._waiting[:0] = left_over
            mine.leads = False
            self._promote_the_first()

    def _wake(self, tickets: list["_ThreadTicket[RequestT, ResultT]"]) -> None:
        """Has each thread wake the next.

        All at once, they would wake up to wait for Python's global lock: so 16 threads reached two thirds as much.
        """
        with self._queue:
            tickets = [ticket for ticket in tickets if not ticket.left]
            for ticket, following in pairwise(tickets):
                ticket.following = following
        if tickets:
            tickets[0].wake()

    def _promote_the_first(self) -> None:
        if not self._waiting:
            self._led = False
        else:
            self._waiting[0].leads = True
            self._waiting[0].wake()

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

    def wake(self) -> None:
        with suppress(RuntimeError):  # it was woken before, and has not noticed yet
            self.turn.release()

    def wake_the_next(self) -> None:
        following, self.following = self.following, None
        if following is not None:
            following.wake()


def _settle_in_doubt(tickets: "list[_ThreadTicket[Any, Any]]") -> None:
    for ticket in tickets:
        ticket.settle(
            StoreUnavailable(
                "the thread that shared its commit was interrupted: read the log to see whether it was stored"
            )
        )
