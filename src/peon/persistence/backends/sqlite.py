"""SQLite."""

import selectors
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, Pool, Table, exists, func, inspect, select, table
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropTable

from peon.persistence.backends import sqlite_connections, sqlite_side_tables, sqlite_statistics, sqlite_vacuum
from peon.persistence.backends.address import is_memory
from peon.persistence.backends.interface import (
    CREATE_TRIGGER_AGAIN,
    READ_ONLY,
    Access,
    Backend,
    ConsumerLock,
    LogHead,
    Synchronous,
)
from peon.persistence.backends.side_tables import SideTables
from peon.persistence.backends.sizes import SizeOfPart, Space, Storage
from peon.persistence.backends.sqlite_connections import (
    WRITE_LOCK_TIMEOUT,
    create_private_file,
    driver_connection,
)
from peon.persistence.backends.sqlite_consumer_lock import FileConsumerLock, ProcessConsumerLock
from peon.persistence.backends.sqlite_driver import GatedConnection, first_row
from peon.persistence.backends.sqlite_file import DatabaseFile
from peon.persistence.backends.sqlite_log_head import SQLiteLogHead, require_fitting_end
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.runtime.sqlalchemy_internals import is_autocommit
from peon.persistence.schema import append_lock, compaction, events, log_identity

OPTIONAL_LOCK_TIMEOUT_SECONDS = 0.05
"""How long an optional index update waits for the write lock."""

POLL_SECONDS = 0.025
"""Between two looks at the counter of commits; a look and the wait for it cost a tenth of a millisecond."""

REBUILD_CACHE_KIB = 16_000
"""Instead of SQLite's 2 MB: rows with random keys in many tables touch more pages than those hold."""


_FAULTS_OF_TABLES = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)

TRIGGERS = ("events_refuse_update", "events_refuse_delete")


class SQLiteBackend(Backend):
    """SQLite, in a file or in memory."""

    name = "sqlite"
    temporary_schema = "temp"
    temporary_tables_end_with_transaction = False
    # One long transaction would keep SQLite from reusing the -wal file, which would grow with the log.
    rebuilds_in_steps = True
    survives_interrupts = True
    stores_nul = True
    measures_parts_by_reading = True
    maximum_key_bytes = None

    def engine_options(self, url: URL, *, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
        return sqlite_connections.connection_options(url, busy_timeout, pool)

    def set_up(
        self,
        engine: Engine,
        *,
        synchronous: Synchronous,
        busy_timeout: float,
        pause: Callable[[float], object],
        access: Access = "write",
    ) -> None:
        sqlite_connections.listen(engine, synchronous, busy_timeout, pause, access)

    def reads_only(self, engine: Engine, access: Access) -> Engine:
        return engine.execution_options(**{READ_ONLY: True})

    def single_reads(self, engine: Engine) -> Engine:
        return self.consistent_reads(engine)

    def consistent_reads(self, engine: Engine) -> Engine:
        return engine.execution_options(**{READ_ONLY: True})

    def projection_reads(self, engine: Engine) -> Engine:
        return self.consistent_reads(engine)  # the tables remain, and their rows are exchanged

    def current_reads(self, engine: Engine) -> Engine:
        return engine  # a transaction that writes holds the write lock, so it sees the newest state

    def begin_writing(self, connection: Connection) -> None:
        if not connection.in_transaction():
            connection.begin()
        # In AUTOCOMMIT no transaction has begun. On an engine created elsewhere, Python's sqlite3 begins one only for
        # an INSERT, and not for a SAVEPOINT, whose end would then be a commit.
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    @contextmanager
    def transaction_without_waiting(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect() as connection:
            connection = connection.execution_options(**{WRITE_LOCK_TIMEOUT: OPTIONAL_LOCK_TIMEOUT_SECONDS})
            with connection.begin():
                self.begin_writing(connection)
                yield connection

    def commits_each_statement(self, connection: Connection) -> bool:
        # An engine created elsewhere may have set the attribute, which Python 3.12 introduced.
        driver = connection.connection.driver_connection
        return is_autocommit(connection) or getattr(driver, "autocommit", None) is True

    def require_committable(self, connection: Connection) -> None:
        pass  # a failed statement does not end the transaction

    def require_current_reads(self, connection: Connection) -> None:
        pass

    def insert(self, table: Table) -> sqlite.Insert:
        return sqlite.insert(table)

    def text_size(self, column: ColumnElement[Any]) -> ColumnElement[int]:
        return func.length(column)  # in characters; octet_length came with SQLite 3.43

    def fetches_rows_one_by_one(self, engine: Engine) -> bool:
        return not engine.dialect.is_async  # SQLAlchemy's adapter fetches all rows of a result at once

    def is_damaged_text(self, error: Exception) -> bool:
        cause = error.orig if isinstance(error, DBAPIError) else error
        # Errors of SQLite have a code. Those of Python's module do not: it has met text that is not UTF-8.
        return isinstance(cause, sqlite3.OperationalError) and not hasattr(cause, "sqlite_errorcode")

    @contextmanager
    def text_decoded_by(self, connection: Connection, decode: Callable[[bytes], str | bytes]) -> Iterator[None]:
        driver: Any = connection.connection.driver_connection
        driver.text_factory = decode
        try:
            yield
        finally:
            driver.text_factory = str

    @contextmanager
    def large_cache(self, connection: Connection) -> Iterator[None]:
        driver = driver_connection(connection)
        (before,) = first_row(driver, "PRAGMA cache_size")
        try:
            driver.execute(f"PRAGMA cache_size = -{REBUILD_CACHE_KIB}")
            yield
        finally:
            with suppress(sqlite3.ProgrammingError):  # an interrupt in the middle of a statement closes the connection
                driver.execute(f"PRAGMA cache_size = {before}")

    def nothing_prepared(self, connection: Connection) -> nullcontext[None]:
        return nullcontext()  # SQLite prepares a statement again when the tables have changed

    def require_fitting_end(self, connection: Connection) -> None:
        require_fitting_end(connection)

    def connect_to_append(self, engine: Engine) -> Connection:
        return engine.connect()

    def begin_append(self, connection: Connection) -> LogHead:
        return self.join_append(connection)

    def join_append(self, connection: Connection) -> LogHead:
        self.begin_writing(connection)
        return SQLiteLogHead(connection)

    @contextmanager
    def changes_to_log(self, connection: Connection) -> Iterator[None]:
        # The transaction holds the write lock, and no other one sees what it has not committed. If it ends before the
        # triggers are there again, it is rolled back, and they were never gone.
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name IN (?, ?)"
        triggers = connection.exec_driver_sql(query, TRIGGERS).all()
        for name, _ in triggers:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        yield
        for _, statement in triggers:
            connection.exec_driver_sql(statement)

    def watch_commits(
        self, connection: sqlite3.Connection, stopped: socket.socket, announce: Callable[[], object]
    ) -> None:
        path = sqlite_connections.sqlite_path(connection)
        file = DatabaseFile(path, None).connected(path, None)
        with selectors.DefaultSelector() as selector:
            selector.register(stopped, selectors.EVENT_READ)
            # The counter of commits by other connections, in shared memory (WAL) or in the first page of the file.
            seen = connection.execute("PRAGMA data_version").fetchone()
            announce()
            while not selector.select(POLL_SECONDS):
                if file is not None:
                    file.require_in_place()  # the counter stands still if another file has taken its place
                if (version := connection.execute("PRAGMA data_version").fetchone()) != seen:
                    seen = version
                    announce()

    def consumer_lock(self, connection: Connection, name: str) -> ConsumerLock:
        path = _main_file(connection)
        if path is None or sys.platform == "win32":
            return ProcessConsumerLock(connection.engine.pool, name)
        return FileConsumerLock(path.resolve(), name)  # a file that has links has one lock

    def identity(self, connection: Connection) -> object:
        path = _main_file(connection)
        if path is None:
            return id(connection.engine.pool)
        file = path.stat()
        return file.st_dev, file.st_ino

    def schema_for_new_tables(self, connection: Connection) -> None:
        return None

    def schema_of_log(self, connection: Connection) -> str:
        return "main"

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        pass  # the write lock is of the whole file

    def side_tables(self, connection: Connection, tables: Sequence[Table]) -> SideTables | None:
        # The only connection of a database in memory is busy with the rebuild all the time. Windows has no lock that
        # keeps two rebuilds from using the same side tables.
        if _main_file(connection) is None or sys.platform == "win32":
            return None
        available = sqlite_side_tables.is_available(connection, tables)
        return sqlite_side_tables.SQLiteSideTables(tables) if available else None

    def new_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        return None  # a table cannot take the indexes of another, nor its triggers

    def version(self, connection: Connection) -> str:
        return sqlite3.sqlite_version

    def storage(self, connection: Connection) -> Storage:
        return sqlite_statistics.storage_of(connection, _main_file(connection))

    def sizes_of_parts(self, connection: Connection) -> list[SizeOfPart] | None:
        return sqlite_statistics.sizes_of_parts(connection)

    def users(self, connection: Connection) -> list[str] | None:
        file = _main_file(connection)
        return None if file is None else sqlite_statistics.processes_with(file)

    def is_fault_of_tables(self, error: Exception) -> bool:
        code: int | None = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _FAULTS_OF_TABLES

    def is_readable(self, connection: Connection, table: Table) -> bool:
        try:
            checked = connection.exec_driver_sql(f"PRAGMA {table.schema}.integrity_check({_quoted(table)})")
            return checked.scalar() == "ok"
        except DBAPIError as error:
            if not isinstance(error.orig, Exception) or not self.is_fault_of_tables(error.orig):
                raise
            return False

    def discard_table(self, connection: Connection, table: Table, *, readable: bool) -> None:
        # Where pages can be moved, DROP TABLE moves a page of another table into the gap, which may be the damaged one.
        moves_pages = connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() != 0
        if readable and not moves_pages:
            connection.execute(DropTable(table, if_exists=True))
            return
        # DROP TABLE reads the pages that it frees, and a transaction that has met a damaged page cannot write any more.
        # The pages remain unused until the next VACUUM.
        connection.exec_driver_sql("PRAGMA writable_schema = ON")
        try:
            entries = f"DELETE FROM {table.schema}.sqlite_master WHERE tbl_name = ?"  # noqa: S608
            connection.exec_driver_sql(entries, (table.name,))
        finally:
            connection.exec_driver_sql("PRAGMA writable_schema = RESET")  # off; tables are looked up again

    def statements_that_may_fail(self, connection: Connection) -> nullcontext[None]:
        return nullcontext()  # a savepoint could not be ended after a damaged page was met

    def last_assigned_sequence(self, connection: Connection) -> int | None:
        # AUTOINCREMENT keeps it there, in a page of its own.
        rows = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (events.name,))
        assigned: int | None = rows.scalar()
        return assigned

    def space_of(self, engine: Engine) -> Space:
        return sqlite_vacuum.space_of(engine)

    def give_back_space(self, engine: Engine, report: Callable[[int, int], None], *, full: bool) -> None:
        sqlite_vacuum.give_back_space(engine, report, full=full)

    @contextmanager
    def deleted_content_overwritten(self, connection: Connection) -> Iterator[None]:
        driver = driver_connection(connection)
        (before,) = first_row(driver, "PRAGMA main.secure_delete")
        try:
            driver.execute("PRAGMA main.secure_delete = ON")
            yield
        finally:
            with suppress(sqlite3.ProgrammingError):  # see `large_cache`
                driver.execute(f"PRAGMA main.secure_delete = {('OFF', 'ON', 'FAST')[before]}")

    def erase_deleted_content(self, engine: Engine, *, vacuum: bool) -> str | None:
        return sqlite_vacuum.erase_deleted_content(engine, vacuum=vacuum)

    @contextmanager
    def migration_transaction(self, connection: Connection) -> Iterator[None]:
        # SQLite changes a table by creating a new one and dropping the old one, which would delete the rows that
        # refer to it. The pragma has no effect inside a transaction: https://sqlite.org/lang_altertable.html
        driver = driver_connection(connection)
        (enforced,) = first_row(driver, "PRAGMA foreign_keys")
        try:
            driver.execute("PRAGMA foreign_keys = OFF")
            with connection.begin():
                self.begin_writing(connection)
                yield
        finally:
            try:
                driver.execute(f"PRAGMA foreign_keys = {enforced}")
            except BaseException:  # a signal handler has raised
                driver.execute(f"PRAGMA foreign_keys = {enforced}")
                raise

    def missing_parts(self, connection: Connection) -> dict[str, str]:
        found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
        return {f"the trigger {name}": CREATE_TRIGGER_AGAIN for name in TRIGGERS if name not in found}

    def save_copy(self, connection: Connection, revision: str | None) -> Path | None:
        """Copies a file that holds rows to one beside it, private to the owner."""
        engine = connection.engine
        source = None if is_memory(engine.url) else _main_file(connection)
        if source is None or not _is_populated(connection):
            return None
        copy = source.with_name(f"{source.name}.{revision or 'base'}.backup")
        partial = copy.with_name(f"{copy.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            create_private_file(partial)
            with engine.connect() as reader, closing(sqlite3.connect(partial, factory=GatedConnection)) as target:
                driver_connection(reader).backup(target)
            for suffix in ("-wal", "-shm"):  # of the copy that is replaced, left by a reader that was killed
                copy.with_name(copy.name + suffix).unlink(missing_ok=True)
            partial.replace(copy)
        except BaseException:
            with suppress(OSError):  # of a disk that fails; the error that is raised tells more
                partial.unlink(missing_ok=True)
            raise
        return copy


def dump_memory(engine: Engine) -> str:
    """Returns the statements that create the tables and rows of a database in memory."""
    with engine.connect() as connection:
        return "\n".join(driver_connection(connection).iterdump())


def _quoted(table: Table) -> str:
    return "'" + table.name.replace("'", "''") + "'"


def _main_file(connection: Connection) -> Path | None:
    files = {database.name: database.file for database in connection.exec_driver_sql("PRAGMA database_list")}
    return Path(files["main"]) if files["main"] else None


def _is_populated(connection: Connection) -> bool:
    # Each has its one row from the beginning.
    always_filled = {version_table_of(connection), append_lock.name, log_identity.name, compaction.name}
    tables = [name for name in inspect(connection).get_table_names() if name not in always_filled]
    return any(connection.scalar(select(exists().select_from(table(name)))) for name in tables)
