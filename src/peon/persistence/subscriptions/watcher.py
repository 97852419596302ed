"""Notices commits of other connections: one thread for each database to which this process subscribes."""

import asyncio
import logging
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import closing
from threading import Thread, current_thread
from typing import Any

from sqlalchemy import Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_missing
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import for_threads
from peon.persistence.runtime.log_records import CONNECTIONS, report

RECONNECT_SECONDS = 1.0
"""Before a lost connection is opened again."""

END_TIMEOUT_SECONDS = 0.2
"""How long a caller waits for a watcher to end."""

END_POLL_SECONDS = 0.001
"""Between two looks of an event loop whether the watcher has ended."""


class Watcher:
    """Calls `announce` when another connection has committed, or may have.

    It has a connection of its own. If that is lost, the watcher opens another; until it succeeds it calls
    `announce` once a second, so that subscriptions meet the error, or read what is new.
    """

    def __init__(self, engine: Engine, announce: Callable[[], object]) -> None:
        self._engine = for_threads(engine)
        self._pool = self._engine.pool.recreate()  # so that it takes none of the application's connections
        self._announce = announce
        self._stopped, self._end = socket.socketpair()
        self._thread = Thread(target=self._run, name="peon-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tells it to close its connection, and to end."""
        self._end.shutdown(socket.SHUT_RDWR)  # closing is not enough: a forked child may share the socket
        self._end.close()

    def wait(self) -> None:
        """Waits for its end, but not for long: a server may never answer."""
        if current_thread() is not self._thread:
            self._thread.join(END_TIMEOUT_SECONDS)

    async def ended(self) -> None:
        """Waits for its end in an event loop, but not for long."""
        deadline = time.monotonic() + END_TIMEOUT_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(END_POLL_SECONDS)

    def _run(self) -> None:
        backend = backend_of(self._engine)
        database = database_name(self._engine)
        is_interrupted = False
        with self._stopped:
            while True:
                try:
                    with closing(self._connect()) as connection:
                        if is_interrupted:
                            report(CONNECTIONS, logging.INFO, "watching %(database)s again", database=database)
                            is_interrupted = False
                        backend.watch_commits(connection, self._stopped, self._announce)
                    return
                except Exception as error:
                    if not is_interrupted:  # once, and not with each attempt to connect again
                        report(
                            CONNECTIONS,
                            logging.WARNING,
                            "watching %(database)s was interrupted: %(error)s",
                            database=database,
                            error=type(error).__name__,
                        )
                    is_interrupted = True
                self._announce()
                with selectors.DefaultSelector() as selector:
                    selector.register(self._stopped, selectors.EVENT_READ)
                    if selector.select(RECONNECT_SECONDS):
                        return

    def _connect(self) -> Any:
        """Returns a connection of the driver that no pool owns."""
        if is_missing(self._engine.url):
            raise FileNotFoundError(self._engine.url.database)  # connecting would create an empty file
        connection = self._pool.connect()
        connection.detach()
        return connection.dbapi_connection
