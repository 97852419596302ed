"""Runs the application's own migrations, for `open_database` and for the `alembic` command."""

from functools import partial

from alembic import context
from notes_application.application import PEON_VERSION_TABLE, database_url, metadata
from sqlalchemy import Connection

from peon import create_engine
from peon.persistence.migrations import exclude_peon_tables, migration_transaction


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=partial(exclude_peon_tables, version_table=PEON_VERSION_TABLE),
        render_as_batch=True,  # SQLite changes most of a table only by copying it
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    engine = create_engine(database_url())
    try:
        with migration_transaction(engine) as connection:
            run(connection)
    finally:
        engine.dispose()
