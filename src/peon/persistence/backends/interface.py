"""What the package needs from a database system beyond SQLAlchemy Core."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sqlalchemy import URL, ColumnElement, Connection, Engine, Pool, Table

from peon.persistence.backends.side_tables import NewTables, SideTables
from peon.persistence.backends.sizes import SizeOfPart, Space, Storage

if TYPE_CHECKING:
    from sqlalchemy.dialects.postgresql import Insert as PostgreSQLInsert
    from sqlalchemy.dialects.sqlite import Insert as SQLiteInsert

READ_ONLY = "peon_read_only"
"""Execution option of an engine or a connection: its transactions only read, so they never wait for a writer."""

CREATE_TRIGGER_AGAIN = "create it again, as `alembic upgrade head --sql` prints it"

Synchronous = Literal["FULL", "NORMAL"]

Access = Literal["write", "read", "read and compute"]
"""What connections are for. Those that read and compute may fill temporary tables, and change nothing else."""


class LogHead(ABC):
    """The end of the log in one transaction. No other transaction can append until this one ends.

    Sequences are therefore assigned in the order of commits, and without gaps.

    Attributes:
        connection: The connection whose transaction it is.
        locked_at: When the lock that orders appends was acquired, by `time.monotonic()`, if that was later than the
            beginning of the transaction.
    """

    connection: Connection
    locked_at: float | None = None

    @abstractmethod
    def wait(self) -> None:
        """Waits for other appenders, unless that was done before. What they committed can then be read."""

    @property
    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether the lock that orders appends is still to be acquired."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The sequence of the last event, 0 for an empty log."""

    @abstractmethod
    def add(self, event_types: Sequence[str], payloads: Sequence[str]) -> tuple[int, datetime]:
        """Stores at least one event, given as two columns.

        Returns:
            The sequence of the first event (the others follow without a gap), and when they were stored, in UTC.
        """


class ConsumerLock(ABC):
    """The lock of one consumer on the name of its durable subscription; it ends with its process.

    A forked child does not inherit it. An object that is no longer used releases it.
    """

    @property
    @abstractmethod
    def is_held(self) -> bool:
        """Whether the lock is held, as far as is known without asking the database."""

    @abstractmethod
    def acquire(self) -> bool:
        """Acquires the lock unless another consumer holds it, or confirms that it is still held; does not wait.

        Returns:
            Whether it is held now.
        """

    @abstractmethod
    def release(self) -> None:
        """Lets another consumer acquire the lock; does nothing if it is not held. Never waits for the database."""


class Backend(ABC):
    """One database system. The object has no state: it serves any number of engines and threads.

    Attributes:
        name: As SQLAlchemy names the dialect.
        temporary_schema: The schema in which temporary tables are found.
        temporary_tables_end_with_transaction: Whether a rollback or a commit drops them.
        rebuilds_in_steps: Whether a rebuild commits after each step, and not only at its end.
        survives_interrupts: Whether a connection can be used after a signal handler has raised inside the driver.
        stores_nul: Whether text may hold NUL characters.
        measures_parts_by_reading: Whether `sizes_of_parts` reads the whole database.
        maximum_key_bytes: Bytes of UTF-8 that text may have in an index beside an identifier; `None` for no limit.
    """

    name: ClassVar[str]
    temporary_schema: ClassVar[str]
    temporary_tables_end_with_transaction: ClassVar[bool]
    rebuilds_in_steps: ClassVar[bool]
    survives_interrupts: ClassVar[bool]
    stores_nul: ClassVar[bool]
    measures_parts_by_reading: ClassVar[bool]
    maximum_key_bytes: ClassVar[int | None]

    # Connecting

    @abstractmethod
    def engine_options(self, url: URL, *, busy_timeout: float, pool: type[Pool]) -> dict[str, Any]:
        """Returns what `sqlalchemy.create_engine` needs besides the address."""

    @abstractmethod
    def set_up(
        self,
        engine: Engine,
        *,
        synchronous: Synchronous,
        busy_timeout: float,
        pause: Callable[[float], object],
        access: Access = "write",
    ) -> None:
        """Adds the listeners that set up each connection and begin each transaction.

        Args:
            pause: Waits for a number of seconds.
            access: What the connections are for.
        """

    # Transactions

    @abstractmethod
    def reads_only(self, engine: Engine, access: Access) -> Engine:
        """Returns the engine with transactions that cannot write, for `access` other than "write"."""

    @abstractmethod
    def single_reads(self, engine: Engine) -> Engine:
        """Returns the engine for reads of one statement each, which need no transaction."""

    @abstractmethod
    def consistent_reads(self, engine: Engine) -> Engine:
        """Returns the engine with transactions that only read, and that see one committed state."""

    @abstractmethod
    def projection_reads(self, engine: Engine) -> Engine:
        """Returns the engine of `consistent_reads` for transactions that read tables which a rebuild may replace."""

    @abstractmethod
    def current_reads(self, engine: Engine) -> Engine:
        """Returns the engine with transactions in which each statement sees what was committed before it."""

    @abstractmethod
    def begin_writing(self, connection: Connection) -> None:
        """Makes sure that the connection is in a transaction that can write."""

    @abstractmethod
    def transaction_without_waiting(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Begins a transaction whose statements fail instead of waiting long for a lock."""

    @abstractmethod
    def commits_each_statement(self, connection: Connection) -> bool:
        """Returns whether the connection has no transactions, so that each of its statements is durable at once."""

    @abstractmethod
    def require_committable(self, connection: Connection) -> None:
        """Raises `PersistenceError` if a COMMIT would be answered by a rollback without an error."""

    @abstractmethod
    def require_current_reads(self, connection: Connection) -> None:
        """Raises `PersistenceError` if the transaction cannot see what others commit meanwhile."""

    # Statements

    @abstractmethod
    def insert(self, table: Table) -> "SQLiteInsert | PostgreSQLInsert":
        """Returns an INSERT that knows ON CONFLICT."""

    @abstractmethod
    def text_size(self, column: ColumnElement[Any]) -> ColumnElement[int]:
        """Returns an expression for the size of a text, in the unit that is cheap to compute."""

    @abstractmethod
    def fetches_rows_one_by_one(self, engine: Engine) -> bool:
        """Returns whether the driver leaves the rows of a result in the database until they are fetched."""

    @abstractmethod
    def is_damaged_text(self, error: Exception) -> bool:
        """Returns whether the driver failed at text that is not valid UTF-8."""

    @abstractmethod
    def text_decoded_by(
        self, connection: Connection, decode: Callable[[bytes], str | bytes]
    ) -> AbstractContextManager[None]:
        """Reads text with the given function, where the database may hold text that is not valid UTF-8."""

    @abstractmethod
    def large_cache(self, connection: Connection) -> AbstractContextManager[None]:
        """Gives the connection enough cache for many writes to random places."""

    @abstractmethod
    def nothing_prepared(self, connection: Connection) -> AbstractContextManager[None]:
        """Prevents that a statement which was prepared before ignores temporary tables."""

    # The log

    @abstractmethod
    def require_fitting_end(self, connection: Connection) -> None:
        """Raises `StoreUnavailable` if the end of the log shows that the database is damaged; takes little time."""

    @abstractmethod
    def connect_to_append(self, engine: Engine) -> Connection:
        """Returns a connection for `begin_append`."""

    @abstractmethod
    def begin_append(self, connection: Connection) -> LogHead:
        """Begins a transaction at the end of the log, on a connection of `connect_to_append`."""

    @abstractmethod
    def join_append(self, connection: Connection) -> LogHead:
        """Waits for other appenders in the transaction that the connection is in, or begins one."""

    @abstractmethod
    def changes_to_log(self, connection: Connection) -> AbstractContextManager[None]:
        """Lets the transaction of a compaction change and delete events. No other transaction can do so meanwhile.

        `begin_step` must have counted a step in the transaction.
        """

    @abstractmethod
    def watch_commits(self, connection: Any, stopped: socket.socket, announce: Callable[[], object]) -> None:
        """Calls `announce` after each commit of another connection, until `stopped` can be read.

        Args:
            connection: The driver's own connection; nothing else uses it.
        """

    @abstractmethod
    def consumer_lock(self, connection: Connection, name: str) -> ConsumerLock:
        """Returns the lock of a durable subscription of the connection's database, which is not held yet."""

    # Where things are

    @abstractmethod
    def identity(self, connection: Connection) -> object:
        """Returns a value that is equal only for connections to the same database."""

    @abstractmethod
    def schema_for_new_tables(self, connection: Connection) -> str | None:
        """Returns the schema in which a new table is created; `None` if there are no schemas.

        Raises:
            StoreUnavailable: The connection may use no schema.
        """

    @abstractmethod
    def schema_of_log(self, connection: Connection) -> str:
        """Returns the schema that holds the tables of the log."""

    @abstractmethod
    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Keeps all others from writing to the tables until the transaction ends."""

    @abstractmethod
    def side_tables(self, connection: Connection, tables: Sequence[Table]) -> SideTables | None:
        """Returns what creates side tables for existing tables; `None` if their rows cannot be exchanged."""

    @abstractmethod
    def new_tables(self, connection: Connection, tables: Sequence[Table]) -> NewTables | None:
        """Returns what replaces existing tables in one transaction; `None` if they cannot be replaced."""

    # Statistics

    @abstractmethod
    def version(self, connection: Connection) -> str:
        """Returns the version of the database system."""

    @abstractmethod
    def storage(self, connection: Connection) -> Storage:
        """Returns how many bytes the database takes, in the same time for any size."""

    @abstractmethod
    def sizes_of_parts(self, connection: Connection) -> list[SizeOfPart] | None:
        """Returns the sizes of all tables and indexes; `None` if they are not known."""

    @abstractmethod
    def users(self, connection: Connection) -> list[str] | None:
        """Returns the other processes or connections that have the database open; `None` if they are not known."""

    # Damage

    @abstractmethod
    def is_fault_of_tables(self, error: Exception) -> bool:
        """Returns whether the driver failed because a table is damaged, missing, or has another shape than expected."""

    @abstractmethod
    def is_readable(self, connection: Connection, table: Table) -> bool:
        """Returns whether a table exists, and all its rows and indexes can be read."""

    @abstractmethod
    def discard_table(self, connection: Connection, table: Table, *, readable: bool) -> None:
        """Removes a table in whatever state it is, if it exists. No other table may refer to it.

        Args:
            readable: What `is_readable` has returned in an earlier transaction.
        """

    @abstractmethod
    def statements_that_may_fail(self, connection: Connection) -> AbstractContextManager[object]:
        """Lets the transaction continue after a statement inside has failed."""

    @abstractmethod
    def last_assigned_sequence(self, connection: Connection) -> int | None:
        """Returns the highest sequence that was assigned, without reading the log; `None` if that is unknown."""

    # Space

    @abstractmethod
    def space_of(self, engine: Engine) -> Space:
        """Returns how much space the database takes."""

    @abstractmethod
    def give_back_space(self, engine: Engine, report: Callable[[int, int], None], *, full: bool) -> None:
        """Gives free space back to the file system, in transactions of its own.

        Args:
            report: Called with the number of steps done and to do.
            full: Write everything again.
        """

    @abstractmethod
    def deleted_content_overwritten(self, connection: Connection) -> AbstractContextManager[None]:
        """Overwrites what the connection deletes, where the database would leave it in free space."""

    @abstractmethod
    def erase_deleted_content(self, engine: Engine, *, vacuum: bool) -> str | None:
        """Removes what was deleted or replaced from the files; returns what is left to do, `None` if nothing is.

        Args:
            vacuum: Write the database again if that is needed and keeps no reader waiting.
        """

    # Migrations

    @abstractmethod
    def migration_transaction(self, connection: Connection) -> AbstractContextManager[None]:
        """Begins a transaction that no other migrator can share, and commits it at the end."""

    @abstractmethod
    def missing_parts(self, connection: Connection) -> dict[str, str]:
        """Returns what an up-to-date database lacks of the parts that no other statement would miss.

        Returns:
            What is missing, as the end of a sentence, and what to do about it.
        """

    @abstractmethod
    def save_copy(self, connection: Connection, revision: str | None) -> Path | None:
        """Copies a populated database before a migration, where a copy is cheap.

        The connection holds the write lock, so nothing can be added between the copy and the migration. A copy
        that an earlier attempt left at the same revision is replaced, and only when the new one is complete.

        Returns:
            The path of the copy; `None` if there is none.
        """
