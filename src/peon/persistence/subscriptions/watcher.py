"""Notices what other connections commit: a thread for each database to which this process subscribes."""

import asyncio
import logging
import selectors
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from threading import Thread, current_thread
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.engine import with_blocking_driver

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

POLL = 0.025
"""Seconds between two looks at an SQLite file; a look and the wait for it cost a tenth of a millisecond."""

RETRY = 1.0
"""Seconds before the connection is opened again, after it was lost."""

CHECK = 10.0
"""Seconds after which a silent connection to a server is taken for one that may be lost."""

PATIENCE = 0.2
"""Seconds to wait for the end of a watcher."""

LOOK = 0.001
"""Seconds between two looks of an event loop whether it has ended."""

CHANNEL = "peon_events"
"""On which the trigger of the log notifies, with the schema of the log."""

_SCHEMA = (
    "SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE pg_class.oid = to_regclass('events')"
)


class Watcher:
    """Calls `announce` when something was committed, and when that cannot be excluded.

    It has a connection of its own. When that is lost, it opens another; until it succeeds, `announce` is called
    once a second: whoever reads then meets the error, or reads what is new.
    """

    def __init__(self, engine: Engine, announce: Callable[[], object]) -> None:
        self._engine = with_blocking_driver(engine)
        self._pool = self._engine.pool.recreate()  # none of whose connections the application uses
        self._announce = announce
        self._stopped, self._end = socket.socketpair()
        self._thread = Thread(target=self._run, name="peon-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tells it to close its connection, and to end."""
        self._end.shutdown(socket.SHUT_RDWR)  # a forked child may have the other end open still
        self._end.close()

    def wait(self) -> None:
        """Waits for its end; not for long, as a server may never answer."""
        if current_thread() is not self._thread:
            self._thread.join(PATIENCE)

    async def ended(self) -> None:
        """The same in an event loop."""
        patience = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < patience:
            await asyncio.sleep(LOOK)

    def _run(self) -> None:
        watch = self._watch_file if self._engine.dialect.name == "sqlite" else self._watch_server
        with self._stopped:
            while True:
                try:
                    with closing(self._connect()) as connection, selectors.DefaultSelector() as selector:
                        selector.register(self._stopped, selectors.EVENT_READ)
                        watch(connection, selector)
                    return
                except Exception as error:
                    logger.warning("watching %s was interrupted: %s", database_name(self._engine), type(error).__name__)
                self._announce()
                with selectors.DefaultSelector() as selector:
                    selector.register(self._stopped, selectors.EVENT_READ)
                    if selector.select(RETRY):
                        return

    def _connect(self) -> Any:
        """Returns a connection of the driver."""
        connection = self._pool.connect()
        connection.detach()
        driver: Any = connection.dbapi_connection
        if self._engine.dialect.name != "sqlite":
            driver.autocommit = True
        return driver

    def _watch_file(self, connection: sqlite3.Connection, selector: selectors.BaseSelector) -> None:
        # The counter of commits by others, in shared memory (WAL) or in the first page of the file.
        seen = connection.execute("PRAGMA data_version").fetchone()
        self._announce()
        while not selector.select(POLL):
            if (version := connection.execute("PRAGMA data_version").fetchone()) != seen:
                seen = version
                self._announce()

    def _watch_server(self, connection: "psycopg.Connection[Any]", selector: selectors.BaseSelector) -> None:
        notified: list[str] = []
        connection.add_notify_handler(lambda notification: notified.append(notification.payload))
        connection.execute(f"LISTEN {CHANNEL}")
        schema = connection.execute(_SCHEMA).fetchone()
        self._announce()
        selector.register(connection, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(CHECK)]
            if self._stopped in ready:
                return
            connection.execute("SELECT 1")  # takes in the notifications, or fails where the connection is lost
            # A pooler between may listen on another session than it sends to: then at least once in a while.
            if not ready or schema is None or schema[0] in notified:
                self._announce()
            notified.clear()
