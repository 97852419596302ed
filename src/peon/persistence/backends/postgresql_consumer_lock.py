"""The locks of consumers on PostgreSQL: advisory locks of the server, which end with a connection."""

import logging
import os
import select
import sys
import time
from contextlib import closing
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine

from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.interface import ConsumerLock
from peon.persistence.runtime.forking import keep_inherited, reset_after_fork
from peon.persistence.runtime.log_records import CONNECTIONS, report

CONFIRM_SECONDS = 5.0
"""The server is asked whether the connection still lives when it was last asked this long ago."""

_SET_UP = (
    # A server that hears nothing from the client's machine ends the lock after 25 seconds instead of two hours. That
    # is longer than `CONFIRM_SECONDS`: the consumer notices first.
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)
_ACQUIRE = "SELECT pg_try_advisory_lock(%s)"
_CONFIRM = "SELECT true"


class PostgreSQLConsumerLock(ConsumerLock):
    """An advisory lock on a connection of its own. If the connection is lost, so is the lock.

    Args:
        schema: The schema of the log, as advisory locks belong to the whole database.
    """

    def __init__(self, engine: Engine, schema: str, name: str) -> None:
        self._engine = engine
        self._driver_errors = DriverErrors(engine)
        # 64 bits of a digest: two names practically never have the same key.
        digest = sha256(f"peon consumer\0{schema}\0{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._name = name
        self._connection: Any = None
        self._is_locked = False
        self._confirmed_at = 0.0
        reset_after_fork(self, PostgreSQLConsumerLock._reset_in_child)

    def __del__(self) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        is_confirmed = self._is_locked and time.monotonic() < self._confirmed_at + CONFIRM_SECONDS
        return is_confirmed and not self._has_input()

    def acquire(self) -> bool:
        if self._is_locked:
            try:
                self._ask(_CONFIRM)
            except self._engine.dialect.loaded_dbapi.Error:
                self.release()
                report(
                    CONNECTIONS,
                    logging.WARNING,
                    "the connection that held the lock of subscription %(subscription)s of %(database)s was lost; "
                    "another one acquires it, unless another consumer has",
                    database=database_name(self._engine),
                    subscription=self._name,
                )
        try:
            with self._driver_errors:
                if self._connection is None:
                    self._connect()
                self._is_locked = self._is_locked or self._ask(_ACQUIRE, [self._key])
        except BaseException:
            self.release()
            raise
        return self._is_locked

    def release(self) -> None:
        connection, self._connection, self._is_locked = self._connection, None, False
        if connection is not None:
            # The end of the session ends the lock. Not by the driver's `close`, which a finalizer could not await.
            self._libpq(connection).finish()

    def _connect(self) -> None:
        pooled = self._engine.pool.recreate().connect()  # so that it takes none of the application's connections
        pooled.detach()
        self._connection = pooled.dbapi_connection
        if sys.platform != "win32":
            self._input = select.poll()  # made once: a new selector for each event would take longer than the event
            self._input.register(self._libpq(self._connection).socket, select.POLLIN)
        self._engine.dialect.set_isolation_level(self._connection, "AUTOCOMMIT")
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(_SET_UP)

    def _ask(self, question: str, parameters: list[object] | None = None) -> bool:
        asked_at = time.monotonic()
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(question, parameters)
            answer: bool = cursor.fetchone()[0]
        self._confirmed_at = asked_at
        return answer

    def _libpq(self, connection: Any) -> Any:
        driver: Any = self._engine.dialect.get_driver_connection(connection)
        return driver.pgconn

    def _has_input(self) -> bool:
        """Returns whether the server has sent something, which is usually that it ends the connection."""
        if sys.platform == "win32":
            return bool(select.select([self._libpq(self._connection).socket], [], [], 0)[0])
        return bool(self._input.poll(0))

    def _reset_in_child(self) -> None:
        connection, self._connection, self._is_locked = self._connection, None, False
        if connection is not None:
            keep_inherited(connection)
            # Otherwise the server would keep the lock as long as this child lives. Nothing is sent, as the session
            # is the parent's.
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, self._libpq(connection).socket)
            os.close(nothing)
