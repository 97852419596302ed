"""Runs the package's blocking code in an event loop, without blocking it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from peon.persistence.log.stored_event import StoredEvent, StoredT
from peon.persistence.runtime.sqlalchemy_internals import run_in_greenlet

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")

PORTION_EVENTS = 100
"""Events that are decoded without a pause, in one or two milliseconds."""


class Calls:
    """The calls of one database that are under way.

    Each runs in a greenlet, where SQLAlchemy waits for an asynchronous driver instead of a blocking one
    (https://docs.sqlalchemy.org/en/21/orm/extensions/asyncio.html), and in a task of its own that is not cancelled
    with its caller: a driver that is interrupted in the middle of a statement leaves its connection in an unknown
    state.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self, function: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
    ) -> ResultT:
        """Returns the result of the function, which runs to its end even if the caller is cancelled."""
        return await asyncio.shield(self.begin(function, *args, **kwargs))

    def begin(
        self, function: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
    ) -> "asyncio.Task[ResultT]":
        """Returns the task in which the function runs."""
        task = asyncio.create_task(run_in_greenlet(partial(function, *args, **kwargs)))
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def run_on(
        self, connection: AsyncConnection | None, function: Callable[[Connection | None], ResultT]
    ) -> ResultT:
        """Like `run`, with a connection of the caller. Returns, or raises, when the function no longer uses it."""
        task = self.begin(function, _blocking(connection))
        try:
            return await asyncio.shield(task)
        finally:
            # The caller's `async with` would give the connection to another task.
            while connection is not None and not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller may have been cancelled

    async def finish(self) -> None:
        """Waits for the calls that are under way now, including those whose callers were cancelled."""
        if self._tasks:
            await asyncio.wait([*self._tasks])


def _blocking(connection: AsyncConnection | None) -> Connection | None:
    """Returns the connection that the package's code takes."""
    if connection is None:
        return None
    if not isinstance(connection, AsyncConnection):
        raise TypeError(f"connection is an AsyncConnection of the database's engine, not {type(connection).__name__}")
    if connection.sync_connection is None:
        raise TypeError("the connection was not opened: async with db.engine.begin() as connection")
    return connection.sync_connection


class Portion(NamedTuple, Generic[StoredT]):
    """Some events, and the error that ended them, if any. At the end there are no events and no error."""

    events: list[StoredEvent[StoredT]]
    error: Exception | None


def next_portion(following: Callable[[], StoredEvent[Any] | None]) -> Portion[Any]:
    """Collects what the function returns until it returns `None`, raises, or has returned `PORTION_EVENTS` events.

    The event loop runs other tasks between two portions.
    """
    events: list[StoredEvent[Any]] = []
    try:
        while len(events) < PORTION_EVENTS and (stored := following()) is not None:
            events.append(stored)
    except Exception as error:
        return Portion(events, error)
    return Portion(events, None)
