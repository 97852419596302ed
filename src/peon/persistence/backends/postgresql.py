"""PostgreSQL, by way of psycopg."""

import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, Pool, Table, event, func, select, text
from sqlalchemy.dialects import postgresql

from peon.persistence.backends.interface import Backend, ConsumerLock, LogHead, Synchronous
from peon.persistence.backends.postgresql_consumer_lock import PostgreSQLConsumerLock
from peon.persistence.backends.postgresql_lock_timeout import BUSY_TIMEOUT, limited, lock_timeout_of
from peon.persistence.backends.postgresql_log_head import PostgreSQLLogHead
from peon.persistence.errors import PersistenceError

if TYPE_CHECKING:
    import psycopg

OPTIONAL_LOCK_TIMEOUT_MS = 50
"""How long an optional index update waits for a lock."""

MIGRATION_LOCK = 0x7065_6F6E
"""Key of the advisory lock that one migrator at a time holds: "peon" in ASCII."""

NOTIFICATION_CHANNEL = "peon_events"
"""The trigger of the log notifies on it; the payload is the schema of the log."""

MAXIMUM_KEY_BYTES = 2_600
"""A row of an index has 2,704 bytes at most, and an identifier stands before the text."""

SILENCE_SECONDS = 10.0
"""A connection that was silent for this long may be lost, and is tested."""

# Of a database without a log, `to_regclass` is null instead of an error, which would end a transaction of the caller.
# The address does not identify a database: a server has many names, and the options choose the schema.
_IDENTITY = text(
    "SELECT pg_postmaster_start_time(), CAST(to_regclass('events') AS oid), "
    "(SELECT oid FROM pg_database WHERE datname = current_database())"
)

_SCHEMA_OF_LOG = (
    "SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE pg_class.oid = to_regclass('events')"
)

_TRANSACTION_IN_ERROR = 3
"""libpq's PQTRANS_INERROR."""


class PostgreSQLBackend(Backend):
    """PostgreSQL 12 or newer."""

    name = "postgresql"
    temporary_schema = "pg_temp"
    # They are created so: behind a pooler, the next transaction may be on another session of the server.
    temporary_tables_end_with_transaction = True
    rebuilds_in_steps = False
    stores_nul = False
    maximum_key_bytes = MAXIMUM_KEY_BYTES

    def engine_options(self, url: URL, *, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
        return {
            # A server may have ended an idle connection, or been restarted.
            "pool_pre_ping": True,
            # Whatever the server's default is: after waiting for a lock, a transaction must see what its last holder
            # committed.
            "isolation_level": "READ COMMITTED",
            # Whatever address, environment, role and database say: other encodings cannot hold all text.
            "connect_args": {"client_encoding": "utf8"},
            "execution_options": {BUSY_TIMEOUT: busy_timeout},
        }

    def set_up(
        self, engine: Engine, *, synchronous: Synchronous, busy_timeout: float, pause: Callable[[float], object]
    ) -> None:
        @event.listens_for(engine, "connect")
        def refuse_another_encoding(connection: Any, _: object) -> None:
            encoding = connection.info.parameter_status("server_encoding")  # the server sends it without being asked
            if encoding != "UTF8":
                name = connection.info.dbname
                connection.close()
                raise PersistenceError(
                    f"the database {name!r} stores text as {encoding}, which does not hold all characters: name one "
                    "that was created with ENCODING 'UTF8'"
                )

    def single_reads(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def consistent_reads(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="REPEATABLE READ")

    def current_reads(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="READ COMMITTED")

    def begin_writing(self, connection: Connection) -> None:
        if not connection.in_transaction():
            connection.begin()

    @contextmanager
    def transaction_without_waiting(self, engine: Engine) -> Iterator[Connection]:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {OPTIONAL_LOCK_TIMEOUT_MS}")
            yield connection

    def require_committable(self, connection: Connection) -> None:
        # After an error that the application swallowed, PostgreSQL answers a COMMIT with a rollback and no error.
        driver: Any = connection.connection.dbapi_connection
        if driver.info.transaction_status == _TRANSACTION_IN_ERROR:
            raise PersistenceError(
                "a statement failed in the transaction of an append, and its error was swallowed, by on_append or a "
                "projection: the server undid the whole. Use a savepoint (connection.begin_nested()) there"
            )

    def require_current_reads(self, connection: Connection) -> None:
        # With one snapshot for all statements, the transaction would not notice what others have stored.
        if connection.get_isolation_level() != "READ COMMITTED":
            raise PersistenceError(
                "a condition without events needs a transaction with the isolation level READ COMMITTED"
            )

    def insert(self, table: Table) -> postgresql.Insert:
        return postgresql.insert(table)

    def text_size(self, column: ColumnElement[Any]) -> ColumnElement[int]:
        return func.octet_length(column)  # without decompressing the text

    def fetches_rows_one_by_one(self, engine: Engine) -> bool:
        return False

    def is_damaged_text(self, error: Exception) -> bool:
        return False  # the server checks the text that it stores

    def text_decoded_by(self, connection: Connection, decode: Callable[[bytes], str | bytes]) -> nullcontext[None]:
        return nullcontext()

    def large_cache(self, connection: Connection) -> nullcontext[None]:
        return nullcontext()

    @contextmanager
    def nothing_prepared(self, connection: Connection) -> Iterator[None]:
        # A statement that psycopg prepared earlier would keep using the table that it found then.
        driver: Any = connection.connection.driver_connection
        threshold = driver.prepare_threshold
        driver.prepare_threshold = None
        try:
            yield
        finally:
            driver.prepare_threshold = threshold

    def connect_to_append(self, engine: Engine) -> Connection:
        # Under AUTOCOMMIT the driver sends no BEGIN, which would be a round trip more; `begin_append` sends it.
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def begin_append(self, connection: Connection) -> LogHead:
        return PostgreSQLLogHead.begin(connection)

    def join_append(self, connection: Connection) -> LogHead:
        self.begin_writing(connection)
        return PostgreSQLLogHead.join(connection)

    def watch_commits(
        self, connection: "psycopg.Connection[Any]", stopped: socket.socket, announce: Callable[[], object]
    ) -> None:
        connection.autocommit = True
        schemas: list[str] = []
        connection.add_notify_handler(lambda notification: schemas.append(notification.payload))
        connection.execute(f"LISTEN {NOTIFICATION_CHANNEL}")
        schema_of_log = connection.execute(_SCHEMA_OF_LOG).fetchone()
        announce()
        with selectors.DefaultSelector() as selector:
            selector.register(stopped, selectors.EVENT_READ)
            selector.register(connection, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(SILENCE_SECONDS)]
                if stopped in ready:
                    return
                connection.execute("SELECT 1")  # receives the notifications, or fails if the connection is lost
                # Announced after a silence too: a pooler may have given the LISTEN to another session.
                if not ready or schema_of_log is None or schema_of_log[0] in schemas:
                    announce()
                schemas.clear()

    def consumer_lock(self, connection: Connection, name: str) -> ConsumerLock:
        return PostgreSQLConsumerLock(connection.engine, self.schema_of_log(connection), name)

    def identity(self, connection: Connection) -> object:
        return tuple(connection.execute(_IDENTITY).one())

    def schema_for_new_tables(self, connection: Connection) -> str | None:
        return connection.scalar(select(func.current_schema()))

    def schema_of_log(self, connection: Connection) -> str:
        return str(connection.scalar(text(_SCHEMA_OF_LOG)))

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        names = ", ".join(table.name for table in tables)
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    @contextmanager
    def migration_transaction(self, connection: Connection) -> Iterator[None]:
        # With another level the snapshot could be older than the lock, and miss what the last migrator did.
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            connection.execute(select(limited(lock_timeout_of(connection))))
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield

    def save_copy(self, connection: Connection, revision: str | None) -> Path | None:
        return None  # pg_dump makes copies of a server's database
