"""Runs the migrations, for `Database.open()`, the `alembic` command, and Alembic's Python interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection

from peon.config import AppConfig, ConfigError
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import database_url, is_missing
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.engine import create_engine
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import PersistenceError
from peon.persistence.migrations import (
    LOCKED_CONNECTION,
    ON_REVISION,
    known_revision,
    migration_transaction,
    revisions,
)
from peon.persistence.schema import metadata


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Returns whether Alembic manages the table here: not those of the application and of its own projections."""
    return kind != "table" or name in metadata.tables


configure = partial(
    context.configure,
    target_metadata=metadata,
    include_name=is_ours,
    transactional_ddl=True,
    render_as_batch=True,
)


def read_configuration() -> tuple[AppConfig, URL]:
    arguments = context.get_x_argument(as_dictionary=True)
    given = set(arguments)
    if given - {"url", "data_dir", "version_table"} or {"url", "data_dir"} <= given or "" in arguments.values():
        raise CommandError("-x takes either url=… or data_dir=…, and version_table=…")
    database: dict[str, str | None] = {}
    if "version_table" in given:
        database["version_table"] = arguments["version_table"]
    if "data_dir" in given:
        config = AppConfig(general={"data_dir": arguments["data_dir"]}, database={"url": None, **database})
    else:
        url = arguments.get("url", context.config.get_main_option("sqlalchemy.url"))
        if url is not None:
            database["url"] = url
        config = AppConfig(database=database)
    return config, database_url(config)


def command_name() -> str:
    """Returns the name of the function with which Alembic's command plans its work, once the context is configured.

    The command line is not the only caller, so its options do not tell the command.
    """
    name: str = context.get_context().opts["fn"].__name__
    return name


def creates_database(url: URL) -> bool:
    configure(url=url)  # without a connection, because connecting creates the file
    return command_name() in ("upgrade", "do_stamp")


def configure_for(connection: Connection) -> None:
    on_revision = context.config.attributes.get(ON_REVISION)
    configure(
        connection=connection,
        version_table=version_table_of(connection),
        version_table_schema=backend_of(connection).schema_for_new_tables(connection),
        on_version_apply=None if on_revision is None else lambda *, step, **_: on_revision(step.up_revision_id),
    )


def run() -> None:
    with context.begin_transaction():
        context.run_migrations()


def save_copy_and_run(connection: Connection) -> None:
    revision = known_revision(connection)
    configure_for(connection)
    command = command_name()
    changes_tables = command == "downgrade" or (command == "upgrade" and revision != revisions()[-1])
    if changes_tables and (copy := backend_of(connection).save_copy(connection, revision)):
        context.config.print_stdout("Saved what there is to %s", copy)
    run()


@contextmanager
def transaction_of_caller(connection: Connection) -> Iterator[None]:
    if connection.in_transaction():
        backend_of(connection).begin_writing(connection)
        yield
    else:
        with backend_of(connection).migration_transaction(connection):
            yield


def run_command() -> None:
    if (given := context.config.attributes.get("connection")) is not None:
        with DriverErrors(given.engine), transaction_of_caller(given):
            save_copy_and_run(given)
        return
    config, url = read_configuration()
    if context.is_offline_mode():
        configure(url=url, literal_binds=True, version_table=config.database.version_table)
        run()
        return
    try:
        engine = create_engine(
            url,
            synchronous=config.database.synchronous,
            busy_timeout=config.database.busy_timeout,
            version_table=config.database.version_table,
        )
    except ValueError as error:  # Peon has a table of this name
        raise CommandError(str(error)) from error
    if is_missing(engine.url) and not creates_database(engine.url):
        raise CommandError(f"there is no database {database_name(engine)}; alembic upgrade head creates it")
    try:
        with DriverErrors(engine), migration_transaction(engine) as connection:
            save_copy_and_run(connection)
    finally:
        engine.dispose()


if (locked := context.config.attributes.get(LOCKED_CONNECTION)) is not None:
    configure_for(locked)
    run()
else:
    if hasattr(context.config.cmd_opts, "cmd"):  # the command line; an application configures its own logging
        fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)
    try:
        run_command()
    except (PersistenceError, ConfigError) as error:
        raise CommandError(str(error)) from error
