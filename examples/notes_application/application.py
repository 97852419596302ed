"""An application with tables and an Alembic tree of its own, in the database of Peon.

Peon keeps its revision in `peon_version`, so `alembic_version` is the application's. The tree is in `migrations/`.
"""

import os
from pathlib import Path
from uuid import UUID

from alembic import command
from alembic.config import Config
from sqlalchemy import Boolean, Column, Integer, MetaData, Table, Text, Uuid, false, insert, select

from peon import AppConfig, Database
from peon.persistence.migrations import migration_transaction

PEON_VERSION_TABLE = "peon_version"

metadata = MetaData()

notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True),
    # No foreign key to `projection_threads`: a rebuild of Peon's projections deletes those rows.
    Column("thread_id", Uuid, nullable=False, index=True),
    Column("words", Text, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),
)


def database_url() -> str:
    return os.environ.get("NOTES_DATABASE_URL", "sqlite:///notes.db")


def configuration() -> AppConfig:
    return AppConfig(database={"url": database_url(), "version_table": PEON_VERSION_TABLE})


def open_database() -> Database:
    """Opens the database, after migrating Peon's tables and the application's."""
    database = Database.open(configuration())
    try:
        config = Config(Path(__file__).with_name("alembic.ini"))
        with migration_transaction(database.engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except BaseException:
        database.close()
        raise
    return database


def add_note(database: Database, thread_id: UUID, words: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(insert(notes).values(thread_id=thread_id, words=words))


def notes_of(database: Database, thread_id: UUID) -> list[str]:
    with database.read_transaction() as connection:
        chosen = select(notes.c.words).where(notes.c.thread_id == thread_id).order_by(notes.c.id)
        return list(connection.scalars(chosen))
