"""Databases at any revision, and their schemas and rows."""

import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, MetaData, inspect, text

from peon.persistence.backends.engine import create_engine
from peon.persistence.migrations import alembic_folder, migration_transaction

FROZEN = Path(__file__).parents[1] / "data" / "databases"
Schema = list[tuple[Any, ...]]
Rows = dict[str, list[dict[str, Any]]]

POSTGRESQL_CATALOGUE = """
SELECT table_name, row_number() OVER (PARTITION BY table_name ORDER BY ordinal_position), column_name,
     data_type, is_nullable, column_default, identity_generation
FROM information_schema.columns WHERE table_schema = current_schema();

SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = current_schema()::regnamespace;

SELECT replace(indexdef, current_schema() || '.', '')
FROM pg_indexes WHERE schemaname = current_schema();

SELECT replace(pg_get_triggerdef(t.oid), current_schema() || '.', '')
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace;

SELECT proname, prosrc
FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
"""


def thaw(revision: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FROZEN / f"{revision}.db", path)
    path.chmod(0o600)
    return path


def file_of(url: URL) -> Path:
    return Path(str(url.database))


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def engine_of(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def schema_of(url: URL) -> Schema:
    """Returns everything that a migration can create, independent of the order of creation."""
    with engine_of(url) as engine, engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
            return [(*row[:3], " ".join(row.sql.split())) for row in connection.execute(text(query))]
        queries = POSTGRESQL_CATALOGUE.split(";")
        return [tuple(row) for query in queries for row in sorted(connection.exec_driver_sql(query))]


def rows_of(url: URL) -> Rows:
    with engine_of(url) as engine, engine.connect() as connection:
        return {
            table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()]
            for table in inspect(connection).get_table_names()
            if table != "alembic_version"
        }


def cut_to(columns: Rows, rows: Rows) -> Rows:
    """Returns the rows, reduced to the tables and columns in `columns`."""
    return {
        table: [{name: row[name] for name in columns[table][0]} for row in rows.get(table, [])] for table in columns
    }


def revision_of(url: URL) -> list[str]:
    with engine_of(url) as engine, engine.connect() as connection:
        return list(connection.scalars(text("SELECT version_num FROM alembic_version")))


def state_of(url: URL) -> tuple[Schema, Rows, list[str]]:
    return schema_of(url), rows_of(url), revision_of(url)


def migrate(url: URL, direction: Callable[[Config, str], None], revision: str) -> None:
    config = Config(str(alembic_folder() / "alembic.ini"))
    with engine_of(url) as engine, migration_transaction(engine) as connection:
        config.attributes["connection"] = connection
        direction(config, revision)


def populate(url: URL, revision: str, tmp_path: Path) -> Rows:
    """Brings an empty database to a revision and fills it with the rows of the frozen database."""
    rows = rows_of(URL.create("sqlite", database=str(thaw(revision, tmp_path / "thawed" / "peon.db"))))
    migrate(url, command.upgrade, revision)
    reflected = MetaData()
    with engine_of(url) as engine, engine.begin() as connection:
        reflected.reflect(connection)
        for table in reflected.sorted_tables:
            if table.name in ("append_lock", "log_identity", "compaction"):  # they have their row already
                connection.execute(table.delete())
            for row in rows.get(table.name, []):
                connection.execute(table.insert().values(row))
    assert rows_of(url) == rows
    return rows


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make_migration_fail(path: Path, operation: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TRIGGER events_refuse_{operation} AFTER INSERT ON settings BEGIN SELECT 1; END")
