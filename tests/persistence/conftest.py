"""Fixtures that open an empty migrated database in about a millisecond."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from helpers.migrated_databases import file_of, thaw
from sqlalchemy import URL, text

from peon.config import AppConfig
from peon.orchestration import OrchestrationEvent, ProjectRenamed
from peon.persistence import Database, create_engine
from peon.persistence.log import pages
from peon.persistence.projections import manager, rebuilding

Opener = Callable[..., Database]
"""Opens an empty database by name, without running Alembic; `**options` are passed to `Database.open`."""


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrinks pages, so that a few events need several pages and several transactions, and few rows count as many."""
    monkeypatch.setattr(pages, "PAGE_EVENTS", 4)
    monkeypatch.setattr(manager, "PAGES_A_COMMIT", 2)
    monkeypatch.setattr(rebuilding, "PAGES_A_COMMIT", 2)
    monkeypatch.setattr(rebuilding, "FEW_ROWS", 0)


@pytest.fixture
def populated_url(sqlite_url: URL) -> URL:
    """Returns the URL of a database at the first revision, with rows in every table."""
    thaw("001_initial", file_of(sqlite_url))
    return sqlite_url


@pytest.fixture
def an_event() -> OrchestrationEvent:
    return ProjectRenamed(project_id=uuid4(), name="new")


@pytest.fixture(params=["file", "memory", "postgresql"], scope="module")
def open_empty(request: pytest.FixtureRequest) -> Opener:
    """Opens any number of databases; opening a name again replaces the earlier database of that name."""
    opener: Opener = request.getfixturevalue(f"open_empty_{request.param}")
    return opener


@pytest.fixture(params=["file", "postgresql"])
def open_lasting(request: pytest.FixtureRequest) -> Opener:
    """Like `open_empty`, without databases in memory: a test can open the `engine.url` a second time."""
    opener: Opener = request.getfixturevalue(f"open_empty_{request.param}")
    return opener


@pytest.fixture(scope="session")
def open_empty_file(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Opener]:
    opened: dict[str, Database] = {}

    def open_empty(name: str = "peon", **options: Any) -> Database:
        close(opened, name)
        path = tmp_path_factory.mktemp("empty") / "peon.db"
        shutil.copy(migrated_file, path)
        url = URL.create("sqlite", database=str(path))
        database = opened[name] = Database.open(AppConfig(), url=url, **options)
        return database

    yield open_empty
    close(opened, *opened)


@pytest.fixture(scope="session")
def open_empty_memory(migrated_file: Path) -> Iterator[Opener]:
    opened: dict[str, Database] = {}

    def open_empty(name: str = "peon", **options: Any) -> Database:
        close(opened, name)
        database = opened[name] = Database(create_engine("sqlite://"), **options)
        with closing(sqlite3.connect(migrated_file)) as source, database.engine.connect() as connection:
            source.backup(connection.connection.driver_connection)  # type: ignore[arg-type]
        if options.get("maintain_projections", True):
            database.projections.catch_up()
        return database

    yield open_empty
    close(opened, *opened)


@pytest.fixture(scope="session")
def open_empty_postgresql(postgresql_server: URL, statements_for_postgresql: str) -> Iterator[Opener]:
    schemas = Schemas(postgresql_server, statements_for_postgresql)
    yield schemas.open_empty
    schemas.drop()


def close(opened: dict[str, Database], *names: str) -> None:
    for name in names:
        if name in opened:
            database = opened.pop(name)
            database.close()
            assert database.engine.pool.checkedout() == 0, "a connection was not returned to the pool"  # type: ignore[attr-defined]


class Schemas:
    def __init__(self, server: URL, statements: str) -> None:
        self._server = server
        self._statements = statements
        self._engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
        self._urls: dict[str, URL] = {}
        self._opened: dict[str, Database] = {}

    def open_empty(self, name: str = "peon", **options: Any) -> Database:
        close(self._opened, name)
        if name in self._urls:
            self._empty(self._urls[name])
        else:
            self._urls[name] = self._create()
        database = self._opened[name] = Database.open(AppConfig(), url=self._urls[name], **options)
        return database

    def drop(self) -> None:
        close(self._opened, *self._opened)
        with self._engine.connect() as connection:
            for url in self._urls.values():
                connection.execute(text(f"DROP SCHEMA {self._schema(url)} CASCADE"))
        self._engine.dispose()

    def _create(self) -> URL:
        schema = f"test_{uuid4().hex}"
        with self._engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            connection.exec_driver_sql(f"SET search_path = {schema}")
            connection.exec_driver_sql(self._statements)
            connection.exec_driver_sql("ALTER TABLE events DISABLE TRIGGER USER")  # the triggers forbid deleting events
            connection.exec_driver_sql("SET search_path = DEFAULT")
        return self._server.update_query_dict({"options": f"-csearch_path={schema}"})

    def _empty(self, url: URL) -> None:
        tables = (
            *("events", "projection_projects", "projection_deletions", "projection_positions", "projection_problems"),
            *("settings", "removed_events", "merged_events", "redactions", "redacted_events", "command_receipts"),
            "subscription_positions",
            *("event_tags", "tags", "tag_positions"),
        )
        schema = self._schema(url)
        with self._engine.connect() as connection:
            connection.exec_driver_sql("; ".join(f"DELETE FROM {schema}.{table}" for table in tables))

    def _schema(self, url: URL) -> str:
        return str(url.query["options"]).rpartition("=")[2]
