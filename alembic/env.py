"""Runs the migrations, for `Database.open()`, which passes a connection, and for the `alembic` command."""

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
from peon.persistence.errors import PersistenceError
from peon.persistence.migrations import (
    current_revision,
    migration_transaction,
    refuse_unknown,
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
    if set(arguments) - {"url", "data_dir"} or len(arguments) > 1 or "" in arguments.values():
        raise CommandError("-x takes either url=… or data_dir=…")
    if "url" in arguments:
        config = AppConfig(database={"url": arguments["url"]})
    elif "data_dir" in arguments:
        config = AppConfig(general={"data_dir": arguments["data_dir"]}, database={"url": None})
    else:
        config = AppConfig()
    return config, database_url(config)


def command_name() -> str:
    options = context.config.cmd_opts
    return options.cmd[0].__name__ if options else ""


def changes_tables(revision: str | None) -> bool:
    command = command_name()
    return command == "downgrade" or (command == "upgrade" and revision != revisions()[-1])


def run(connection: Connection) -> None:
    configure(connection=connection, version_table_schema=backend_of(connection).schema_for_new_tables(connection))
    with context.begin_transaction():
        context.run_migrations()


def run_command() -> None:
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)
    config, url = read_configuration()
    if context.is_offline_mode():
        configure(url=url, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(url, synchronous=config.database.synchronous, busy_timeout=config.database.busy_timeout)
    if command_name() not in ("upgrade", "stamp") and is_missing(engine.url):
        raise CommandError(f"there is no database {database_name(engine)}; alembic upgrade head creates it")
    try:
        with DriverErrors(engine), migration_transaction(engine) as connection:
            revision = current_revision(connection)
            refuse_unknown(engine, revision)
            if changes_tables(revision) and (copy := backend_of(connection).save_copy(connection, revision)):
                context.config.print_stdout("Saved what there is to %s", copy)
            run(connection)
    finally:
        engine.dispose()


if (shared := context.config.attributes.get("connection")) is not None:
    run(shared)
else:
    try:
        run_command()
    except (PersistenceError, ConfigError) as error:
        raise CommandError(str(error)) from error
