"""PostgreSQL, by way of psycopg."""

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, Pool, Table, event, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import DropTable

from peon.persistence.backends import postgresql_statistics, postgresql_vacuum, postgresql_watching
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.backends.interface import (
    CREATE_TRIGGER_AGAIN,
    Access,
    Backend,
    ConsumerLock,
    LogHead,
    Synchronous,
)
from peon.persistence.backends.postgresql_consumer_lock import PostgreSQLConsumerLock
from peon.persistence.backends.postgresql_dead_connections import connect_timeout, set_limits
from peon.persistence.backends.postgresql_lock_timeout import BUSY_TIMEOUT, limited, lock_timeout_of
from peon.persistence.backends.postgresql_log_head import CREATE_LOCK_ROW, PostgreSQLLogHead
from peon.persistence.backends.postgresql_new_tables import PostgreSQLNewTables
from peon.persistence.backends.postgresql_privileges import no_schema
from peon.persistence.backends.postgresql_watching import SCHEMA_OF_LOG
from peon.persistence.backends.sizes import SizeOfPart, Space, Storage
from peon.persistence.errors import PersistenceError, StoreUnavailable
from peon.persistence.runtime.log_records import CONNECTIONS, report
from peon.persistence.schema import append_lock, complete_partial_indexes, projection_positions

if TYPE_CHECKING:
    import psycopg

complete_partial_indexes()

OPTIONAL_LOCK_TIMEOUT_MS = 50
"""How long an optional index update waits for a lock."""

MIGRATION_LOCK = 0x7065_6F6E
"""Key of the advisory lock that one migrator at a time holds: "peon" in ASCII."""

MAXIMUM_KEY_BYTES = 2_600
"""A row of an index has 2,704 bytes at most, and an identifier stands before the text."""

# Of a database without a log, `to_regclass` is null instead of an error, which would end a transaction of the caller.
# The address does not identify a database: a server has many names, and the options choose the schema.
_IDENTITY = text(
    "SELECT pg_postmaster_start_time(), CAST(to_regclass('events') AS oid), "
    "(SELECT oid FROM pg_database WHERE datname = current_database())"
)

_FAULTS_OF_TABLES = ("22", "23", "42", "58P01", "XX")
"""SQLSTATEs of statements that do not fit a table, of missing files and of damaged pages."""

_MISSING_PRIVILEGE = "42501"
_MISSING_TABLE = "42P01"

TRIGGERS = ("events_refuse_change", "events_notify")

# A trigger that was disabled still counts: that is done deliberately, and undone.
_PARTS = (
    "SELECT CAST(tgname AS text) FROM pg_catalog.pg_trigger WHERE tgrelid = to_regclass('events') "
    "UNION ALL (SELECT 'append_lock' FROM append_lock LIMIT 1)"
)

_CURRENT_SCHEMA = "SELECT current_schema(), current_setting('search_path'), CAST(current_user AS text)"

_TRANSACTION_IN_ERROR = 3
"""libpq's PQTRANS_INERROR."""


class PostgreSQLBackend(Backend):
    """PostgreSQL 12 or newer."""

    name = "postgresql"
    temporary_schema = "pg_temp"
    # They are created so: behind a pooler, the next transaction may be on another session of the server.
    temporary_tables_end_with_transaction = True
    rebuilds_in_steps = False
    # psycopg may remain in pipeline mode, in which it takes its transaction for idle and sends no ROLLBACK.
    survives_interrupts = False
    stores_nul = False
    measures_parts_by_reading = False
    maximum_key_bytes = MAXIMUM_KEY_BYTES

    def engine_options(self, url: URL, *, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
        return {
            # A server may have ended an idle connection, or been restarted.
            "pool_pre_ping": True,
            # Whatever the server's default is: after waiting for a lock, a transaction must see what its last holder
            # committed.
            "isolation_level": "READ COMMITTED",
            # Whatever address, environment, role and database say: other encodings cannot hold all text.
            "connect_args": {"client_encoding": "utf8", **connect_timeout(url)},
            "execution_options": {BUSY_TIMEOUT: busy_timeout},
        }

    def set_up(
        self,
        engine: Engine,
        *,
        synchronous: Synchronous,
        busy_timeout: float,
        pause: Callable[[float], object],
        access: Access = "write",
    ) -> None:
        @event.listens_for(engine, "connect")
        def notice_if_dead(_: object, record: ConnectionPoolEntry) -> None:
            driver: Any = record.driver_connection
            set_limits(driver)

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

        @event.listens_for(engine, "invalidate")
        def report_lost(_: object, __: ConnectionPoolEntry, error: BaseException | None) -> None:
            report(
                CONNECTIONS,
                logging.WARNING,
                "a connection to %(database)s is unusable (%(error)s) and is replaced when it is needed",
                database=database_name(engine),
                error="interrupted" if error is None else type(error).__name__,
            )

        @event.listens_for(engine, "reset")
        def refuse_in_pipeline_mode(_: object, record: ConnectionPoolEntry | None, __: object) -> None:
            # A thread was interrupted in the middle of an append, and again before it could discard the connection.
            # The driver takes the transaction for idle in this mode: the rollback of the pool would do nothing.
            driver: Any = None if record is None else record.driver_connection
            if driver is not None and driver.info.pipeline_status:
                raise InterruptedError("the connection was interrupted in pipeline mode")

    def reads_only(self, engine: Engine, access: Access) -> Engine:
        # A read-only transaction of PostgreSQL cannot create temporary tables.
        return engine.execution_options(postgresql_readonly=True) if access == "read" else engine

    def single_reads(self, engine: Engine) -> Engine:
        return _at_level(engine, "AUTOCOMMIT")

    def consistent_reads(self, engine: Engine) -> Engine:
        return _at_level(engine, "REPEATABLE READ")

    def projection_reads(self, engine: Engine) -> Engine:
        reads = self.consistent_reads(engine)
        event.listen(reads, "begin", _keep_tables)
        return reads

    def current_reads(self, engine: Engine) -> Engine:
        return _at_level(engine, "READ COMMITTED")

    def begin_writing(self, connection: Connection) -> None:
        if not connection.in_transaction():
            connection.begin()

    @contextmanager
    def transaction_without_waiting(self, engine: Engine) -> Iterator[Connection]:
        with self.current_reads(engine).begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {OPTIONAL_LOCK_TIMEOUT_MS}")
            yield connection

    def commits_each_statement(self, connection: Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        return bool(driver.autocommit)

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

    def require_fitting_end(self, connection: Connection) -> None:
        pass  # the server keeps its files together

    def connect_to_append(self, engine: Engine) -> Connection:
        if engine.get_execution_options().get("postgresql_readonly"):  # the driver would not send it with that BEGIN
            raise StoreUnavailable(f"{database_name(engine)} was opened to be read: open it again to append to it")
        # Under AUTOCOMMIT the driver sends no BEGIN, which would be a round trip more; `begin_append` sends it.
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def begin_append(self, connection: Connection) -> LogHead:
        return PostgreSQLLogHead.begin(connection)

    def join_append(self, connection: Connection) -> LogHead:
        self.begin_writing(connection)
        return PostgreSQLLogHead.join(connection)

    def changes_to_log(self, connection: Connection) -> nullcontext[None]:
        return nullcontext()  # the trigger lets a transaction pass that has counted a step

    def watch_commits(
        self, connection: "psycopg.Connection[Any]", stopped: socket.socket, announce: Callable[[], object]
    ) -> None:
        postgresql_watching.watch(connection, stopped, announce)

    def consumer_lock(self, connection: Connection, name: str) -> ConsumerLock:
        return PostgreSQLConsumerLock(connection.engine, self.schema_of_log(connection), name)

    def identity(self, connection: Connection) -> object:
        return tuple(connection.execute(_IDENTITY).one())

    def schema_for_new_tables(self, connection: Connection) -> str:
        # Otherwise the server would only say that none was selected, when the first table is created.
        name, search_path, role = connection.exec_driver_sql(_CURRENT_SCHEMA).one()
        if name is None:
            raise StoreUnavailable(f"{database_name(connection.engine)}: {no_schema(search_path, role)}")
        return str(name)

    def schema_of_log(self, connection: Connection) -> str:
        return str(connection.scalar(text(SCHEMA_OF_LOG)))

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        names = ", ".join(table.name for table in tables)
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    def side_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        return None  # the rows of two tables cannot be exchanged

    def new_tables(self, connection: Connection, tables: Sequence[Table]) -> PostgreSQLNewTables | None:
        new = PostgreSQLNewTables(self.schema_of_log(connection), tables)
        return new if new.can_replace(connection) else None

    def version(self, connection: Connection) -> str:
        return str(connection.exec_driver_sql("SHOW server_version").scalar())

    def storage(self, connection: Connection) -> Storage:
        return postgresql_statistics.storage_of(connection, self.schema_of_log(connection))

    def sizes_of_parts(self, connection: Connection) -> list[SizeOfPart]:
        return postgresql_statistics.sizes_of_parts(connection, self.schema_of_log(connection))

    def users(self, connection: Connection) -> list[str]:
        return postgresql_statistics.sessions(connection)

    def is_fault_of_tables(self, error: Exception) -> bool:
        state = str(getattr(error, "sqlstate", None))
        return state.startswith(_FAULTS_OF_TABLES) and state != _MISSING_PRIVILEGE

    def is_readable(self, connection: Connection, table: Table) -> bool:
        try:
            with self.statements_that_may_fail(connection):
                connection.execute(select(func.count()).select_from(table)).one()
        except DBAPIError as error:
            if not isinstance(error.orig, Exception) or not self.is_fault_of_tables(error.orig):
                raise
            return False
        return True

    def discard_table(self, connection: Connection, table: Table, *, readable: bool) -> None:
        connection.execute(DropTable(table, if_exists=True))  # reads no page of it

    def statements_that_may_fail(self, connection: Connection) -> AbstractContextManager[object]:
        return connection.begin_nested()

    def last_assigned_sequence(self, connection: Connection) -> int | None:
        return None  # each append counts on from the last event

    def space_of(self, engine: Engine) -> Space:
        return postgresql_vacuum.space_of(engine)

    def give_back_space(self, engine: Engine, report: Callable[[int, int], None], *, full: bool) -> None:
        postgresql_vacuum.give_back_space(engine, report, full=full)

    def deleted_content_overwritten(self, connection: Connection) -> nullcontext[None]:
        return nullcontext()  # the server keeps old rows, until a vacuum

    def erase_deleted_content(self, engine: Engine, *, vacuum: bool) -> str:
        return postgresql_vacuum.OLD_ROWS

    @contextmanager
    def migration_transaction(self, connection: Connection) -> Iterator[None]:
        # With another level the snapshot could be older than the lock, and miss what the last migrator did.
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            connection.execute(select(limited(lock_timeout_of(connection))))
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield

    def missing_parts(self, connection: Connection) -> dict[str, str]:
        found = connection.exec_driver_sql(_PARTS).scalars().all()
        parts = {f"the trigger {name}": CREATE_TRIGGER_AGAIN for name in TRIGGERS if name not in found}
        if append_lock.name not in found:
            parts["the row of the table append_lock"] = f"run  {CREATE_LOCK_ROW}"
        return parts

    def save_copy(self, connection: Connection, revision: str | None) -> Path | None:
        return None  # pg_dump makes copies of a server's database


def _keep_tables(connection: Connection) -> None:
    # Before the first statement that needs a snapshot: then the tables that the snapshot shows stay until it ends.
    try:
        connection.exec_driver_sql(f"LOCK TABLE {projection_positions.name} IN ACCESS SHARE MODE")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _MISSING_TABLE:
            raise
        connection.dialect.do_rollback(connection.connection)  # a database without the table can be looked at, too


def _at_level(engine: Engine, level: IsolationLevel) -> Engine:
    # Of the levels of an engine and of the engine that it was derived from, SQLAlchemy applies the latter.
    if level != "AUTOCOMMIT" and engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise ValueError(
            f"the engine of {database_name(engine)} was put into AUTOCOMMIT by execution_options: pass the engine that "
            "it was derived from"
        )
    return engine.execution_options(isolation_level=level)
