"""Puts a backup in the place of a database, and keeps what was there."""

from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfileobj
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import URL, Connection, Engine, create_engine, inspect, text

from peon.persistence.backends.address import is_file
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import PersistenceError
from peon.persistence.log.identity import renew_identity
from peon.persistence.operations.backups import postgresql_programs, sqlite_files
from peon.persistence.operations.backups.backing_up import TIME_IN_NAME
from peon.persistence.operations.backups.contents import (
    Contents,
    contents_of,
    previous_contents,
    require_known_revision,
)
from peon.persistence.runtime.compression import COPIED_BYTES, decompressing
from peon.persistence.runtime.new_files import file_errors, private_file_beside, sync, sync_folder
from peon.persistence.schema import events, log_identity

LOCK_TIMEOUT_SECONDS = 5
"""How long a restore waits for transactions that use the schema which it replaces."""


class ResumedSubscription(NamedTuple):
    """A durable subscription after a restore.

    Attributes:
        name: Its name.
        sequence: Its position in the backup. It receives the events after it.
        previous: Its position in the database that was replaced; `None` if it was not there or could not be read.
            Up to that event, its consumer has processed events already.
    """

    name: str
    sequence: int
    previous: int | None


class RestoreReport(NamedTuple):
    """What `restore_database` has done.

    Attributes:
        events: The number of events of the restored log.
        last_sequence: The sequence of its last event, 0 for an empty log.
        previous_last_sequence: That of the log that was replaced; `None` if there was none, or if it cannot be read.
        revision: The revision of the restored tables.
        kept: Where the replaced database is: a path, or the name of a schema; `None` if there was none.
        log_id: The new identity of the log; `None` if the revision has none.
        subscriptions: The durable subscriptions.
    """

    events: int
    last_sequence: int
    previous_last_sequence: int | None
    revision: str
    kept: str | None
    log_id: UUID | None
    subscriptions: tuple[ResumedSubscription, ...]


def restore_database(engine: Engine, file: Path, *, replace: bool = False, dry_run: bool = False) -> RestoreReport:
    """Puts a backup of `back_up_database` in the place of a database, and gives its log a new identity.

    Stop the applications before. The backup is read as a whole before anything is changed. What it replaces is kept: an
    SQLite file gets another name in its folder, a schema of PostgreSQL another name in its database. If a step fails,
    the database is as it was before. If the process is killed, the database may have that other name only.

    Args:
        engine: Of the database to be replaced, which need not exist. Its connections are closed. On PostgreSQL, the
            database must exist, `pg_restore` must be installed, and the role of the engine owns what is restored.
        file: The backup. For SQLite, any database file that is not in use, compressed or not.
        replace: Replace a database that exists.
        dry_run: Check the backup, and return what a restore would do, without the new identity.

    Raises:
        SchemaTooNew: A newer version has made the backup.
        StoreUnavailable: The database is in use, locked or not reachable.
        DamagedFile: The backup is damaged.
        PersistenceError: The database exists and `replace` is off; the backup cannot be read, or is of another schema;
            `pg_restore` is not installed, or has failed.
    """
    engine.dispose()
    # As in `back_up_database`.
    restore = _restore_sqlite if engine.dialect.name == "sqlite" else _restore_postgresql
    return restore(engine, file, replace=replace, dry_run=dry_run)


def _restore_sqlite(engine: Engine, file: Path, *, replace: bool, dry_run: bool) -> RestoreReport:
    if not is_file(engine.url):
        raise PersistenceError(f"{database_name(engine)} is not a path: give the address of a file, sqlite:///…")
    target = Path(str(engine.url.database)).resolve()
    with file_errors(file):
        sqlite_files.require_nothing_beside(file)
        if target.exists() and target.samefile(file):
            raise PersistenceError(f"{file} is the database itself: name a backup of it")
    exists = _refuse_or_replace(target.exists(), f"{target} exists", replace or dry_run)
    with file_errors(target):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with private_file_beside(target) as partial:
            _decompress(file, partial)
            contents = sqlite_files.checked_contents(partial, str(file), version_table_of(engine))
            require_known_revision(contents, str(file))
            previous = previous_contents(engine) if exists else None
            kept = target.with_name(_kept_name(target.name))
            if dry_run:
                return _report(contents, previous, str(kept) if exists else None, None)
            log_id = _with_new_identity(partial)
            sync(partial)
            if exists:
                sqlite_files.require_unused(target)
            with sqlite_files.moved_away(target, kept):
                partial.rename(target)
                if sqlite_files.checked_contents(target, str(target), version_table_of(engine)) != contents:
                    raise PersistenceError(f"{target} differs from {file} after it was copied: check the disk")
            sync_folder(target)
    return _report(contents, previous, str(kept) if exists else None, log_id)


def _decompress(file: Path, target: Path) -> None:
    with (
        file_errors(file),
        file.open("rb") as raw,
        decompressing(raw, str(file)) as source,
        target.open("wb") as destination,
    ):
        copyfileobj(source, destination, COPIED_BYTES)


def _with_new_identity(file: Path) -> UUID | None:
    engine = create_engine(URL.create("sqlite", database=str(file)))
    try:
        with DriverErrors(engine), engine.begin() as connection:
            return _renew(connection)
    finally:
        engine.dispose()


def _restore_postgresql(engine: Engine, file: Path, *, replace: bool, dry_run: bool) -> RestoreReport:
    programs = postgresql_programs.Programs(engine)
    schema = programs.schema
    with file_errors(file):
        file.open("rb").close()
    dump = programs.contents_of_dump(file)
    require_known_revision(dump.contents, str(file))
    if dump.schema != schema:
        raise PersistenceError(
            f"{file} is a backup of the schema {dump.schema}, but {database_name(engine)} uses {schema}: give an "
            "address with that schema in its search_path, or rename the schema after restoring it"
        )
    with DriverErrors(engine), engine.connect() as connection:
        is_used = bool(connection.scalar(_OBJECTS, {"schema": schema}))
        has_log = inspect(connection).has_table(events.name, schema)
        extensions = connection.scalars(_EXTENSIONS, {"schema": schema}).all()
    exists = _refuse_or_replace(
        is_used, f"the schema {schema} of {database_name(engine)} is not empty", replace or dry_run
    )
    if exists and extensions:
        raise PersistenceError(
            f"the schema {schema} of {database_name(engine)} has extensions ({', '.join(extensions)}), which other "
            "schemas may use: restore into another database"
        )
    previous = previous_contents(engine) if exists else None
    kept = _kept_name(schema)
    if dry_run:
        return _report(dump.contents, previous, kept if exists else None, None)
    if exists:
        # Wait for appends that are about to commit; a rename alone would not.
        lock = [f"LOCK TABLE {_q(schema)}.{events.name} IN ACCESS EXCLUSIVE MODE"] if has_log else []
        rename = f"ALTER SCHEMA {_q(schema)} RENAME TO {_q(kept)}"
        _execute(engine, *lock, rename, f"CREATE SCHEMA {_q(schema)}")
    try:
        programs.restore(file)
        with DriverErrors(engine), engine.begin() as connection:
            after = contents_of(connection)
            log_id = _renew(connection)
        if after != dump.contents:
            raise PersistenceError(f"{database_name(engine)} differs from {file} after it was restored")
    except BaseException:
        if exists:
            _execute(engine, f"DROP SCHEMA {_q(schema)} CASCADE", f"ALTER SCHEMA {_q(kept)} RENAME TO {_q(schema)}")
        raise
    return _report(dump.contents, previous, kept if exists else None, log_id)


_OBJECTS = text("SELECT count(*) FROM pg_class WHERE relnamespace = CAST(quote_ident(:schema) AS regnamespace)")

_EXTENSIONS = text("SELECT extname FROM pg_extension WHERE extnamespace = CAST(quote_ident(:schema) AS regnamespace)")


def _execute(engine: Engine, *statements: str) -> None:
    with DriverErrors(engine), engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
        for statement in statements:
            connection.exec_driver_sql(statement)


def _q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refuse_or_replace(exists: bool, what: str, replace: bool) -> bool:
    if exists and not replace:
        raise PersistenceError(f"{what}: name another database, or allow that it is replaced; it will be kept")
    return exists


def _kept_name(name: str) -> str:
    return f"{name}.before-{datetime.now(UTC).strftime(TIME_IN_NAME)}"


def _renew(connection: Connection) -> UUID | None:
    return renew_identity(connection) if inspect(connection).has_table(log_identity.name) else None


def _report(contents: Contents, previous: Contents | None, kept: str | None, log_id: UUID | None) -> RestoreReport:
    positions = {} if previous is None else previous.positions
    return RestoreReport(
        contents.events,
        contents.last_sequence,
        None if previous is None else previous.last_sequence,
        str(contents.revision),
        kept,
        log_id,
        tuple(
            ResumedSubscription(name, sequence, positions.get(name))
            for name, sequence in sorted(contents.positions.items())
        ),
    )
