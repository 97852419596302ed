"""The PostgreSQL server that the benchmarks use: schemas that are dropped afterwards, and its settings."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import URL, make_url

DEFAULT_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"

DURABILITY_SETTINGS = ("fsync", "synchronous_commit", "wal_sync_method")
"""What decides how long a commit takes."""


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--url` and `--no-postgresql`, which sets `postgresql` to `False`."""
    parser.add_argument("--url", type=make_url, default=DEFAULT_URL, help="a database in which schemas may be created")
    parser.add_argument("--no-postgresql", dest="postgresql", action="store_false", help="measure SQLite alone")


def driver_url(url: URL) -> str:
    """Returns the address as psycopg takes it, without SQLAlchemy."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def new_schema(server: URL) -> Iterator[URL]:
    """Yields the address of an empty schema, which is dropped afterwards."""
    schema = f"benchmark_{uuid4().hex}"
    with psycopg.connect(driver_url(server), autocommit=True) as connection:
        connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    try:
        yield server.update_query_dict({"options": f"-csearch_path={schema}"})
    finally:
        with psycopg.connect(driver_url(server), autocommit=True) as connection:
            connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))


def settle(url: URL) -> None:
    """Vacuums and analyses the filled log, which autovacuum would otherwise do in the middle of a measurement."""
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) events")


def server_version(server: URL) -> str:
    """Returns major and minor version, without what the distribution adds."""
    with psycopg.connect(driver_url(server)) as connection:
        major, minor = divmod(connection.info.server_version, 10_000)
    return f"{major}.{minor}"


def durability(server: URL) -> str:
    with psycopg.connect(driver_url(server)) as connection:
        return ", ".join(
            f"{name}={value}"
            for name in DURABILITY_SETTINGS
            for (value,) in connection.execute("SELECT current_setting(%s)", [name])
        )
