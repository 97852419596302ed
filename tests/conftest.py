"""Real databases; each test has its own."""

import gc
import os
import shutil
import sqlite3
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import OperationalError

from peon.config import AppConfig
from peon.persistence import Database
from peon.persistence.migrations import alembic_folder

pytest_plugins = ["pytest_peon"]  # a checkout that is not installed has no entry points

# Must precede the imports; otherwise, failed assertions in helpers do not show the compared values.
pytest.register_assert_rewrite("helpers")

from helpers.postgresql_schemas import MigratedSchemas, in_schema  # noqa: E402

POSTGRESQL = make_url(os.environ.get("POSTGRESQL_TEST_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"))


def pytest_xdist_auto_num_workers() -> int:
    """Four for two processors: tests spend half of their time waiting for a disk, a server or a process."""
    return (os.cpu_count() or 1) * 2


FIRST = ("test_documentation.py", "test_compaction_of_any_log.py", "test_long_session.py", "test_properties.py")
"""Files with the longest tests: at the end of a run, one of them would keep one worker busy and the others idle."""

ALIKE = (
    *("cli/", "examples/", "persistence/group_commit/", "persistence/log/", "persistence/maintenance/"),
    *(
        "persistence/operations/",
        "persistence/orchestration/",
        "persistence/projections/",
        "persistence/subscriptions/",
    ),
    *("persistence/asynchronous/test_active_consumer.py", "persistence/asynchronous/test_database.py"),
    *("persistence/asynchronous/test_subscription.py", "persistence/runtime/test_open_telemetry.py"),
    *("persistence/test_damaged_schema.py", "persistence/test_logging.py", "persistence/test_own_events.py"),
    *("persistence/test_migrations_revisions.py", "persistence/test_migrations_version_table.py"),
    *("persistence/test_settings.py", "persistence/test_visible_statements.py"),
)
"""Tests that send each kind of database the same statements: they run in a file.

Their variants in memory and on PostgreSQL are slow proofs. `@pytest.mark.postgresql_too` keeps the variant on
PostgreSQL of a test in the suite, and says what can differ there. What differs in memory (connections, threads, the
asynchronous driver) is tested elsewhere.
"""


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        variant = getattr(item, "callspec", None)
        name = item.nodeid.removeprefix("tests/")
        if variant is None or not name.startswith(ALIKE):
            continue
        kinds = variant.params.values()
        if "memory" in kinds or ("postgresql" in kinds and item.get_closest_marker("postgresql_too") is None):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish() -> None:
    """Excludes thousands of collected tests from later garbage collections, which some tests request."""
    gc.collect()
    gc.freeze()


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
    """Skips the test if no server answers; fails instead if REQUIRE_POSTGRESQL is set."""
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
def postgresql_url(postgresql_server: URL, migrated_schemas: MigratedSchemas) -> Iterator[URL]:
    """Returns the address of a new empty schema, isolated from the tables of other tests."""
    schema = migrated_schemas.create()
    yield in_schema(postgresql_server, schema)
    migrated_schemas.drop(schema)


@pytest.fixture
def migrated_postgresql_url(
    postgresql_server: URL, migrated_schemas: MigratedSchemas, statements_for_postgresql: str
) -> Iterator[URL]:
    """Returns the address of a migrated schema that no other test uses at the same time."""
    schema = migrated_schemas.take(statements_for_postgresql)
    yield in_schema(postgresql_server, schema)
    migrated_schemas.give_back(schema)


@pytest.fixture
def url_before_another(postgresql_url: URL, postgresql_server: URL, migrated_schemas: MigratedSchemas) -> Iterator[URL]:
    """Returns an address whose search path has an empty schema before that of `postgresql_url`."""
    schema = migrated_schemas.create()
    other = str(postgresql_url.query["options"]).partition("=")[2]
    yield in_schema(postgresql_server, schema, other)
    migrated_schemas.drop(schema)


@pytest.fixture(scope="session")
def migrated_schemas(postgresql_server: URL) -> Iterator[MigratedSchemas]:
    schemas = MigratedSchemas(postgresql_server)
    yield schemas
    schemas.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "data" / "peon.db"))


@pytest.fixture(params=["file", "memory", "postgresql"])
def url(request: pytest.FixtureRequest) -> URL:
    """Runs the test on each kind of database; the database is empty unless the test also uses `migrated`."""
    if request.param == "memory":
        return URL.create("sqlite", database=":memory:")
    prefix = "migrated_" if "migrated" in request.fixturenames else ""
    return request.getfixturevalue(prefix + {"file": "sqlite_url", "postgresql": "postgresql_url"}[request.param])


@pytest.fixture(params=["file", "postgresql"])
def lasting_url(request: pytest.FixtureRequest) -> URL:
    """Runs the test on an empty database of each kind that outlives its connection."""
    return request.getfixturevalue({"file": "sqlite_url", "postgresql": "postgresql_url"}[request.param])


@pytest.fixture(params=["file", "postgresql"])
def migrated_lasting_url(request: pytest.FixtureRequest) -> URL:
    """Like `lasting_url`, with a migrated database."""
    urls = {"file": "migrated_sqlite_url", "postgresql": "migrated_postgresql_url"}
    return request.getfixturevalue(urls[request.param])


@pytest.fixture
def migrated(url: URL, request: pytest.FixtureRequest) -> None:
    """Makes `url` a migrated database; the tables are copied, because Alembic takes longer than most tests."""
    if url.database == ":memory:":
        request.getfixturevalue("migrated_memory")


@pytest.fixture
def migrated_memory(migrated_file: Path) -> Iterator[None]:
    """Copies all tables into each new database in memory when it is connected."""

    def copy_tables(connection: object, _: object) -> None:
        # The asynchronous driver keeps its connection in another thread, so Alembic migrates those databases.
        if isinstance(connection, sqlite3.Connection):
            ((_, _, file),) = connection.execute("PRAGMA database_list").fetchall()
            if not file:
                with closing(sqlite3.connect(migrated_file)) as source:
                    source.backup(connection)

    event.listen(Engine, "connect", copy_tables)
    yield
    event.remove(Engine, "connect", copy_tables)


@pytest.fixture
def migrated_sqlite_url(sqlite_url: URL, migrated_file: Path) -> URL:
    path = Path(str(sqlite_url.database))
    path.parent.mkdir(mode=0o700)
    shutil.copy(migrated_file, path)
    return sqlite_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "peon.db"
    Database.open(AppConfig(), url=f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def statements_for_postgresql() -> str:
    config = Config(output_buffer=StringIO(), cmd_opts=Namespace(x=["url=postgresql+psycopg://"]))
    config.set_main_option("script_location", str(alembic_folder() / "alembic"))
    command.upgrade(config, "head", sql=True)
    return str(config.output_buffer.getvalue())


@pytest.fixture
def peon_postgresql_url(migrated_postgresql_url: URL) -> URL:
    """For the fixtures of `pytest_peon`: a schema that is migrated already, on the server of the other tests."""
    return migrated_postgresql_url


@pytest.fixture
def peon_file_url(migrated_sqlite_url: URL) -> URL:
    return migrated_sqlite_url


@pytest.fixture
def database(url: URL, migrated: None) -> Iterator[Database]:
    yield from opened(url, maintain_projections=True)


@pytest.fixture
def log_alone(url: URL, migrated: None) -> Iterator[Database]:
    """Returns a database without projections, whose log accepts any event."""
    yield from opened(url, maintain_projections=False)


def opened(url: URL, *, maintain_projections: bool) -> Iterator[Database]:
    with Database.open(url=url, maintain_projections=maintain_projections) as database:
        yield database
        database.events.close()
        assert database.engine.pool.checkedout() == 0, "a connection was not given back"
