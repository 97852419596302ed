"""Group commit: threads, or tasks of an event loop, that append at the same time share one transaction."""

from typing import Any, Protocol

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.group_commit.threads import ThreadWriter
from peon.persistence.group_commit.transactions import Perform, RequestT, ResultT
from peon.persistence.runtime.instrumentation import Operation


class Writer(Protocol[RequestT, ResultT]):
    """Performs requests, one transaction at a time."""

    def write(self, request: RequestT, perform: Perform[RequestT, ResultT], operation: Operation) -> ResultT:
        """Performs a request, and returns its result when it is durable; raises what `perform` raises.

        Args:
            perform: Performs requests in a transaction, and returns their results in the same order. The writer
                does not keep it, so that a store that is no longer used is freed, with its connection.
            operation: Is told about the commit.
        """
        ...

    def close(self) -> None:
        """Returns the connection to the pool; the next transaction takes another one."""


def writer_for(engine: Engine, driver_errors: DriverErrors) -> Writer[Any, Any]:
    if not engine.dialect.is_async:
        return ThreadWriter(engine, driver_errors)
    from peon.persistence.group_commit.tasks import TaskWriter  # imports asyncio, which threads do not need

    return TaskWriter(engine, driver_errors)
