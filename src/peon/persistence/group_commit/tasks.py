"""Group commit for the tasks of an event loop."""

import asyncio
from typing import Any, Generic

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.group_commit.threads import MAXIMUM_REQUESTS
from peon.persistence.group_commit.transactions import AppendTransactions, Perform, RequestT, ResultT, Ticket
from peon.persistence.runtime.instrumentation import Operation
from peon.persistence.runtime.sqlalchemy_internals import await_in_greenlet, run_in_greenlet


class TaskWriter(Generic[RequestT, ResultT]):
    """Like `ThreadWriter`, but in greenlets: one task performs the waiting requests of all in one transaction."""

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._transactions: AppendTransactions[RequestT, ResultT] = AppendTransactions(engine, driver_errors)
        self._waiting: list[_TaskTicket[RequestT, ResultT]] = []
        self._serving: asyncio.Task[None] | None = None
        self._closing: list[asyncio.Future[bool]] = []

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT], operation: Operation) -> ResultT:
        if asyncio.current_task() is self._serving:
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by on_append or a projection: "
                "call it later, or from another task"
            )
        ticket: _TaskTicket[RequestT, ResultT] = _TaskTicket(request, operation)
        self._waiting.append(ticket)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(perform))
        await_in_greenlet(ticket.settled)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def close(self) -> None:
        # Requests that are under way run to their end; later ones take another connection.
        while self._serving is not None:
            closed = asyncio.get_running_loop().create_future()
            self._closing.append(closed)
            if await_in_greenlet(closed):
                return
        self._transactions.give_back()

    async def _serve(self, perform: Perform[RequestT, ResultT]) -> None:
        tickets: list[_TaskTicket[RequestT, ResultT]] = []
        try:
            while self._waiting:
                tickets, self._waiting = self._waiting[:MAXIMUM_REQUESTS], self._waiting[MAXIMUM_REQUESTS:]
                tickets = [ticket for ticket in tickets if not ticket.settled.done()]  # its task was cancelled
                if tickets:
                    # This task has the context of the append that has started it, which may have ended long ago.
                    with tickets[0].operation.as_current():
                        await run_in_greenlet(self._transactions.serve, tickets, perform)
                    _settle(tickets)
                self._transactions.report()
                if self._closing:
                    await run_in_greenlet(self._transactions.give_back)
                    self._answer_close(given_back=True)
        finally:
            self._serving = None
            _settle(tickets)
            self._answer_close(given_back=False)
            # Cancelling this task must not cancel the requests of others, unless the event loop ends.
            if any(not ticket.settled.done() for ticket in self._waiting):
                self._serving = asyncio.create_task(self._serve(perform))

    def _answer_close(self, *, given_back: bool) -> None:
        closing, self._closing = self._closing, []
        for closed in closing:
            if not closed.done():
                closed.set_result(given_back)


def _settle(tickets: "list[_TaskTicket[Any, Any]]") -> None:
    for ticket in tickets:
        if not ticket.served:
            ticket.settle(
                StoreUnavailable(
                    "the task that committed was cancelled: read the log to see whether the events were stored"
                )
            )
        if not ticket.settled.done():
            ticket.settled.set_result(None)


class _TaskTicket(Ticket[RequestT, ResultT]):
    """The request of a waiting task.

    Attributes:
        settled: Is done when the request is served.
    """

    __slots__ = ("settled",)

    def __init__(self, request: RequestT, operation: Operation) -> None:
        super().__init__(request, operation)
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
