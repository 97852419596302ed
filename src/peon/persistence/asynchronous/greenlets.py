"""Runs the package's blocking code in an event loop, without blocking it."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import greenlet_spawn

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


class Calls:
    """The calls of one database that are under way.

    Each runs in a greenlet, where SQLAlchemy waits for an asynchronous driver in the place of a blocking one
    (https://docs.sqlalchemy.org/en/21/orm/extensions/asyncio.html), and in a task of its own that is not cancelled
    with its caller: a driver that is interrupted in the middle leaves a connection of which nobody knows the state.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self, function: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
    ) -> ResultT:
        """Returns what the function returns; where the caller is cancelled, the function still runs to its end."""
        return await asyncio.shield(self.begin(function, *args, **kwargs))

    def begin(
        self, function: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
    ) -> "asyncio.Task[ResultT]":
        """Returns the task in which the function runs."""
        task = asyncio.create_task(greenlet_spawn(partial(function, *args, **kwargs)))
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def run_on(
        self, connection: AsyncConnection | None, function: Callable[[Connection | None], ResultT]
    ) -> ResultT:
        """The same with a connection of the caller, who is held until the function does not need it any more."""
        task = self.begin(function, _blocking(connection))
        try:
            return await asyncio.shield(task)
        finally:
            # The caller's `async with` would give the connection to somebody else.
            while connection is not None and not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # which nobody may be there to hear

    def awaited(self, function: Callable[ParametersT, ResultT]) -> Callable[ParametersT, Coroutine[Any, Any, ResultT]]:
        """Returns the function as one to be awaited."""

        @wraps(function)
        async def call(*args: ParametersT.args, **kwargs: ParametersT.kwargs) -> ResultT:
            return await self.run(function, *args, **kwargs)

        return call

    async def finish(self) -> None:
        """Waits for the calls that are under way now, those whose callers were cancelled too."""
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
