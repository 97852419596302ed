"""Listens for the notifications that PostgreSQL sends after commits.

The driver waits for an answer without a limit. A proxy may keep a connection open and forward nothing, which no
setting of TCP notices. So the watcher asks in steps: it stops waiting after a while, and at once if it is told to.
"""

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGresult

NOTIFICATION_CHANNEL = "peon_events"
"""The trigger of the log notifies on it; the payload is the schema of the log."""

SCHEMA_OF_LOG = (
    "SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE pg_class.oid = to_regclass('events')"
)

SILENCE_SECONDS = 10.0
"""A connection that was silent for this long may be lost, and is tested."""

ANSWER_SECONDS = 5.0
"""How long the answer to that test may take: many times that of a busy server."""


class _StoppedError(Exception):
    """The watcher was told to stop while it waited."""


class _Session:
    """A session of the server that the watcher alone uses."""

    def __init__(
        self, connection: "psycopg.Connection[Any]", selector: selectors.BaseSelector, stopped: socket.socket
    ) -> None:
        connection.autocommit = True
        self._driver = connection.pgconn
        self._selector = selector
        self._stopped = stopped
        selector.register(stopped, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ)

    def wait(self, seconds: float) -> bool:
        """Returns whether the server has sent something in time."""
        ready = [key.fileobj for key, _ in self._selector.select(max(0.0, seconds))]
        if self._stopped in ready:
            raise _StoppedError
        if ready:
            self._driver.consume_input()
        return bool(ready)

    def ask(self, statement: str) -> "PGresult":
        """Returns the result of a statement.

        Raises:
            TimeoutError: There was no answer within `ANSWER_SECONDS`.
            RuntimeError: The server reports an error.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        self._driver.send_query(statement.encode())
        self._driver.flush()
        while self._driver.is_busy():
            if not self.wait(deadline - time.monotonic()):
                raise TimeoutError("the server did not answer")
        result = self._driver.get_result()
        if result is None or result.error_message:
            raise RuntimeError("the server answered with an error")
        while self._driver.get_result() is not None:
            pass
        return result

    def notifications(self) -> Iterator[bytes]:
        """Yields the payloads of the notifications that have arrived."""
        while (notification := self._driver.notifies()) is not None:
            yield notification.extra


def watch(connection: "psycopg.Connection[Any]", stopped: socket.socket, announce: Callable[[], object]) -> None:
    """See `Backend.watch_commits`."""
    with selectors.DefaultSelector() as selector:
        session = _Session(connection, selector, stopped)
        try:
            session.ask(f"LISTEN {NOTIFICATION_CHANNEL}")
            found = session.ask(SCHEMA_OF_LOG)
            schema_of_log = found.get_value(0, 0) if found.ntuples else None
            announce()
            while True:
                if session.wait(SILENCE_SECONDS):
                    if schema_of_log in {None, *session.notifications()}:
                        announce()
                else:
                    # Before the test, which may take long. After a silence too: a pooler may have given the LISTEN
                    # to another session.
                    announce()
                    session.ask("SELECT 1")
        except _StoppedError:
            return
