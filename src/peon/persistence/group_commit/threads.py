"""Group commit for threads: one of them, the leader, performs the waiting requests of all in one transaction."""

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
from peon.persistence.runtime.instrumentation import Operation

MAXIMUM_REQUESTS = 64
"""Requests in one transaction. More would make the first of them wait long."""

GATHERING_SECONDS = 0.00025
"""Stop gathering requests after this long without a new one; several times what a thread needs to append again."""

LEADER_CHECK_SECONDS = 1.0
"""A waiting thread that has waited this long checks for a leader, and takes over if there is none."""

OutcomeT = TypeVar("OutcomeT")


class ThreadWriter(Generic[RequestT, ResultT]):
    """Performs requests of any number of threads, one transaction at a time.

    Threads queue here, because SQLite itself waits by polling, which is unfair. The first thread becomes the leader:
    it performs all waiting requests in one transaction, so that they share the wait for the disk, and then hands
    over to the first thread that arrived meanwhile. Before it begins, the leader waits until as many requests have
    arrived as shared the last transaction, as long as new ones keep arriving. Otherwise the first thread that is
    back would have a commit for itself. If a shared transaction fails, each request gets a transaction of its own,
    so no request fails because of another.

    A signal can interrupt the main thread between any two steps. So no thread relies on the leader, or on being
    woken: a thread that has waited for `LEADER_CHECK_SECONDS` checks for a leader, and takes over if there is none.
    Two leaders take turns at the lock. A loop under a lock is in a function of its own: an interrupt at the jump back
    of a conditional loop skips the handlers of its function, so that a `with` around it would keep its lock
    (https://github.com/python/cpython/issues/130279).
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
        self._has_leader = False
        self._expected = 1
        self._all_arrived: Lock | None = None
        self._lock = Lock()
        self._owner: int | None = None
        self._transactions: AppendTransactions[RequestT, ResultT] = AppendTransactions(
            self._engine, self._driver_errors
        )

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT], operation: Operation) -> ResultT:
        if self._owner == get_ident():
            # A logging handler that stores what the engine logs gets here, and would wait for itself.
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by a logging handler perhaps: "
                "call it later, or from another thread"
            )
        alone = False
        ticket: _ThreadTicket[RequestT, ResultT] | None = None
        try:
            with self._queue:
                alone = not self._has_leader and self._expected == 1
                if not alone:
                    ticket = _ThreadTicket(request, operation)
                    self._queue_up(ticket)
                self._has_leader = True
            if ticket is not None:
                return self._wait(ticket, perform)
            with self._lock:
                (outcome,) = self._owned(self._transactions.transact, [request], perform)
                operation.committed(1, self._transactions.lock_seconds)
        except BaseException:
            if ticket is not None:
                self._leave(ticket)
            raise
        finally:
            if alone:
                with self._queue:
                    self._promote_the_first()
            if self._transactions.reports:
                self._transactions.report()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        with self._lock:
            self._owned(self._transactions.give_back)

    @property
    def connection(self) -> Connection | None:
        """The kept connection."""
        return self._transactions.connection

    def _queue_up(self, ticket: "_ThreadTicket[RequestT, ResultT]") -> None:
        self._waiting.append(ticket)
        if not self._has_leader:
            self._promote_the_first()
        elif self._all_arrived is not None and len(self._waiting) >= self._expected:
            all_arrived, self._all_arrived = self._all_arrived, None
            all_arrived.release()

    def _wait(self, ticket: "_ThreadTicket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> ResultT:
        while not ticket.served:
            if ticket.turn.acquire(timeout=LEADER_CHECK_SECONDS):
                ticket.wake_the_next()
            if ticket.leads:
                self._gather()
            elif self._lock.locked():
                continue
            if not ticket.served:
                self._lead(ticket, perform)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def _gather(self) -> None:
        """Waits until as many requests have arrived as shared the last transaction, or no more arrive."""
        all_arrived = Lock()
        all_arrived.acquire()
        with self._queue:
            arrived = len(self._waiting)
            if arrived >= self._expected:
                return
            self._all_arrived = all_arrived
        try:
            self._wait_while_more_arrive(all_arrived, arrived)
        finally:
            with self._queue:
                self._all_arrived = None

    def _wait_while_more_arrive(self, all_arrived: Lock, arrived: int) -> None:
        while not all_arrived.acquire(timeout=GATHERING_SECONDS):
            before, arrived = arrived, len(self._waiting)
            if arrived == before:
                return

    def _lead(self, mine: "_ThreadTicket[RequestT, ResultT]", perform: Perform[RequestT, ResultT]) -> None:
        tickets: list[_ThreadTicket[RequestT, ResultT]] = []
        with self._lock:
            try:
                with self._queue:
                    self._transactions.stage = "beginning"
                    tickets, self._waiting = self._waiting[:MAXIMUM_REQUESTS], self._waiting[MAXIMUM_REQUESTS:]
                    self._expected = max(len(tickets), 1)
                if tickets:
                    self._owned(self._transactions.serve, tickets, perform)
                if mine not in tickets and mine not in self._waiting and not mine.served:
                    # Its leader was interrupted, and interrupted again in `_clean_up`.
                    _settle_as_unknown([mine])
            finally:
                self._clean_up(mine, tickets)
        self._wake([ticket for ticket in tickets if ticket is not mine and ticket.served])

    def _owned(self, work: Callable[..., OutcomeT], *arguments: Any) -> OutcomeT:
        self._owner = get_ident()
        try:
            return work(*arguments)
        finally:
            self._owner = None

    def _clean_up(
        self, mine: "_ThreadTicket[RequestT, ResultT]", tickets: list["_ThreadTicket[RequestT, ResultT]"]
    ) -> None:
        """Hands over to the next leader. If this thread was interrupted, puts unserved requests back into the queue."""
        with self._queue:
            left_over = _unserved(tickets, mine)
            if self._transactions.stage == "committing":
                _settle_as_unknown(left_over)
            else:
                self._waiting[:0] = left_over
            mine.leads = False
            self._promote_the_first()

    def _wake(self, tickets: list["_ThreadTicket[RequestT, ResultT]"]) -> None:
        """Wakes the first thread; each thread then wakes the next.

        Woken all at once, they would all wait for Python's global lock: 16 threads then reached two thirds as much.
        """
        with self._queue:
            first = _chained(tickets)
        if first is not None:
            first.wake()

    def _promote_the_first(self) -> None:
        if not self._waiting:
            self._has_leader = False
        else:
            self._waiting[0].leads = True
            self._waiting[0].wake()

    def _leave(self, ticket: "_ThreadTicket[RequestT, ResultT]") -> None:
        """Withdraws the request of a thread that was interrupted while it waited."""
        with self._queue:
            ticket.left = True
            ticket.wake_the_next()
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                if ticket.leads:
                    self._promote_the_first()


class _ThreadTicket(Ticket[RequestT, ResultT]):
    """The request of a waiting thread.

    Attributes:
        turn: A lock that is held until the request is served, or its thread becomes the leader.
        leads: Whether its thread is the leader.
        following: The ticket whose thread this one wakes.
        left: Whether its thread was interrupted, and no longer waits.
    """

    __slots__ = ("following", "leads", "left", "turn")

    def __init__(self, request: RequestT, operation: Operation) -> None:
        super().__init__(request, operation)
        self.turn = Lock()
        self.turn.acquire()
        self.leads = False
        self.following: _ThreadTicket[RequestT, ResultT] | None = None
        self.left = False

    def wake(self) -> None:
        with suppress(RuntimeError):  # it was woken before, and has not run yet
            self.turn.release()

    def wake_the_next(self) -> None:
        following, self.following = self.following, None
        if following is not None:
            following.wake()


AnyTicket = _ThreadTicket[Any, Any]


def _unserved(tickets: list[AnyTicket], mine: AnyTicket) -> list[AnyTicket]:
    """Returns the tickets of the other threads that still wait."""
    return [ticket for ticket in tickets if not ticket.served and ticket is not mine and not ticket.left]


def _chained(tickets: list[AnyTicket]) -> AnyTicket | None:
    """Makes each waiting thread wake the next; returns the ticket of the first."""
    waiting = [ticket for ticket in tickets if not ticket.left]
    for ticket, following in pairwise(waiting):
        ticket.following = following
    return waiting[0] if waiting else None


def _settle_as_unknown(tickets: list[AnyTicket]) -> None:
    for ticket in tickets:
        ticket.settle(
            StoreUnavailable(
                "the thread that performed the shared commit was interrupted: read the log to see whether the events "
                "were stored"
            )
        )
