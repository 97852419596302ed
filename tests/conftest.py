"""Databases for the tests: real ones, each test its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import OperationalError

from peon.config import AppConfig
from peon.persistence import Database
from peon.persistence.migrations import alembic_folder

POSTGRESQL = make_url(os.environ.get("POSTGRESQL_TEST_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"))


@pytest.fixture(autouse=True)
def no_configuration_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith("PEON_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg-config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg-data"))


@pytest.fixture(scope="session")
def postgresql_server() -> URL:
    """Skips where no server answers, unless REQUIRE_POSTGRESQL says that one must."""
    try:
        engine = sqlalchemy.create_engine(POSTGRESQL, connect_args={"connect_timeout": 3})
        with engine.connect():
            pass
        engine.dispose()
    except (OperationalError, ImportError) as error:
        reason = f"PostgreSQL cannot be used at {POSTGRESQL}: {str(error).splitlines()[0]}"
        if os.environ.get("REQUIRE_POSTGRESQL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return POSTGRESQL


@pytest.fixture
def postgresql_url(postgresql_server: URL) -> Iterator[URL]:
    """An empty schema of its own, where the tables of other tests are not seen."""
    schema = f"test_{uuid4().hex}"
    engine = sqlalchemy.create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield postgresql_server.update_query_dict({"options": f"-csearch_path={schema}"})
    with engine.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "data" / "peon.db"))


@pytest.fixture(params=["file", "memory", "postgresql"])
def url(request: pytest.FixtureRequest) -> URL:
    """An empty database of each kind: what is tested with it holds for all of them."""
    if request.param == "memory":
        return URL.create("sqlite", database=":memory:")
    return request.getfixturevalue({"file": "sqlite_url", "postgresql": "postgresql_url"}[request.param])


@pytest.fixture(params=["file", "postgresql"])
def lasting_url(request: pytest.FixtureRequest) -> URL:
    """An empty database of each kind that outlives its connection."""
    return request.getfixturevalue({"file": "sqlite_url", "postgresql": "postgresql_url"}[request.param])


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "peon.db"
    Database.open(AppConfig(), url=f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def statements_for_postgresql() -> str:
    ini = str(alembic_folder() / "alembic.ini")
    command = ["-c", ini, "-x", "url=postgresql+psycopg://", "upgrade", "head", "--sql"]
    return subprocess.run(
        [sys.executable, "-m", "alembic", *command], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def migrated(url: URL, request: pytest.FixtureRequest) -> None:
    """Spares most tests a run of Alembic, which takes longer than they do; those of migrations have theirs."""
    if url.get_backend_name() == "postgresql":
        statements = request.getfixturevalue("statements_for_postgresql")
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statements)
        engine.dispose()
    elif url.database != ":memory:":
        path = Path(str(url.database))
        path.parent.mkdir(mode=0o700)
        shutil.copy(request.getfixturevalue("migrated_file"), path)


@pytest.fixture
def database(url: URL, migrated: None) -> Iterator[Database]:
    yield from opened(url, projections=True)


@pytest.fixture
def log_alone(url: URL, migrated: None) -> Iterator[Database]:
    """For the tests of the log: any event goes."""
    yield from opened(url, projections=False)


def opened(url: URL, *, projections: bool) -> Iterator[Database]:
    with Database.open(url=url, projections=projections) as database:
        yield database
        database.events.close()
        assert database.engine.pool.checkedout() == 0, "a connection was not given back"
