"""Who writes: the threads, or the tasks of an event loop, that share one transaction at a time."""

from typing import Any, Protocol

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.group_commit.threads import ThreadWriter
from peon.persistence.group_commit.transactions import Perform, RequestT, ResultT


class Writer(Protocol[RequestT, ResultT]):
    """Performs requests, one transaction at a time."""

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT]) -> ResultT:
        """Performs a request, and returns its result when that is durable; raises what `perform` raises.

        Args:
            perform: Performs requests within a transaction, and returns their results in the same order. It is
                given each time, and not kept: a store that nobody uses any more gives its connection back at once.
        """
        ...

    def close(self) -> None:
        """Gives the connection back to the pool; the next transaction takes one again."""


def writer_for(engine: Engine, driver_errors: DriverErrors) -> Writer[Any, Any]:
    if not engine.dialect.is_async:
        return ThreadWriter(engine, driver_errors)
    from peon.persistence.group_commit.tasks import TaskWriter  # its imports are not needed by those who use threads

    return TaskWriter(engine, driver_errors)
