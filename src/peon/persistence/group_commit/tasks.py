"""The one transaction at a time in which a store writes, and which the tasks of an event loop share."""

import asyncio
from typing import Any, Generic

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.group_commit.threads import MAXIMUM_SHARED
from peon.persistence.group_commit.transactions import AppendTransactions, Perform, RequestT, ResultT, Ticket
from peon.persistence.runtime.sqlalchemy_internals import await_in_greenlet, run_in_greenlet


class TaskWriter(Generic[RequestT, ResultT]):
    """As `ThreadWriter`, within greenlets; what waits together goes into one transaction."""

    def __init__(self, engine: Engine, driver_errors: DriverErrors) -> None:
        self._transactions: AppendTransactions[RequestT, ResultT] = AppendTransactions(engine, driver_errors)
        self._waiting: list[_TaskTicket[RequestT, ResultT]] = []
        self._serving: asyncio.Task[None] | None = None
        self._closing: list[asyncio.Future[bool]] = []

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT]) -> ResultT:
        if asyncio.current_task() is self._serving:
            raise PersistenceError(
                "append_all was called from inside an append of the same store, by on_append or a projection: "
                "call it later, or from another task"
            )
        ticket: _TaskTicket[RequestT, ResultT] = _TaskTicket(request)
        self._waiting.append(ticket)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(perform))
        await_in_greenlet(ticket.settled)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def close(self) -> None:
        # What is under way comes to its end; what comes after that has a connection of its own.
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
                tickets, self._waiting = self._waiting[:MAXIMUM_SHARED], self._waiting[MAXIMUM_SHARED:]
                tickets = [ticket for ticket in tickets if not ticket.settled.done()]  # of a task that was cancelled
                await run_in_greenlet(self._transactions.serve, tickets, perform)
                _settle(tickets)
                if self._closing:
                    await run_in_greenlet(self._transactions.give_back)
                    self._tell_who_closes(given_back=True)
        finally:
            self._serving = None
            _settle(tickets)
            self._tell_who_closes(given_back=False)
            # Whoever cancelled this task did not mean the others, unless their event loop comes to its end.
            if any(not ticket.settled.done() for ticket in self._waiting):
                self._serving = asyncio.create_task(self._serve(perform))

    def _tell_who_closes(self, *, given_back: bool) -> None:
        closing, self._closing = self._closing, []
        for closed in closing:
            if not closed.done():
                closed.set_result(given_back)


def _settle(tickets: "list[_TaskTicket[Any, Any]]") -> None:
    for ticket in tickets:
        if not ticket.served:
            ticket.settle(
                StoreUnavailable("the task that stored it was cancelled: read the log to see whether it was stored")
            )
        if not ticket.settled.done():
            ticket.settled.set_result(None)


class _TaskTicket(Ticket[RequestT, ResultT]):
    """The request of a task that waits.

    Attributes:
        settled: Done when the request is served.
    """

    __slots__ = ("settled",)

    def __init__(self, request: RequestT) -> None:
        super().__init__(request)
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
