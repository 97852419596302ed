"""The pytest plugin of Peon: fixtures for databases. See `peon.testing` for helpers that test projections.

It is a package of its own because importing `peon` loads SQLAlchemy: here only a test that uses a fixture does that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL

    from peon import Database

# Failed assertions of the suite then show the compared rows. A module that is imported already would cause a warning.
if "peon.testing" not in sys.modules:
    pytest.register_assert_rewrite("peon.testing")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "peon_postgresql_url", "the PostgreSQL server for Peon's fixtures; or POSTGRESQL_TEST_URL", default=""
    )


@pytest.fixture
def peon_open_arguments() -> Mapping[str, Any]:
    """Returns the arguments of `Database.open`; override it to give a codec or projections."""
    return {}


@pytest.fixture
def peon_memory_url() -> URL:
    """Returns the address of a database in memory."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=":memory:")


@pytest.fixture
def peon_file_url(tmp_path: Path) -> URL:
    """Returns the address of an SQLite file that does not exist yet."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(tmp_path / "peon" / "peon.db"))


@pytest.fixture
def peon_postgresql_url(pytestconfig: pytest.Config) -> Iterator[URL]:
    """Returns the address of a new PostgreSQL schema, dropped after the test; skips the test if no URL is given."""
    server = os.environ.get("POSTGRESQL_TEST_URL") or pytestconfig.getini("peon_postgresql_url")
    if not server:
        pytest.skip("no PostgreSQL server is given: set peon_postgresql_url or POSTGRESQL_TEST_URL")
    from peon.testing import temporary_schema

    with temporary_schema(server) as url:
        yield url


@pytest.fixture(params=["memory", "file", "postgresql"])
def peon_url(request: pytest.FixtureRequest) -> URL:
    """Returns the address of an empty database; runs the test on each kind of database."""
    url: URL = request.getfixturevalue(f"peon_{request.param}_url")
    return url


@pytest.fixture
def peon_memory_database(peon_memory_url: URL, peon_open_arguments: Mapping[str, Any]) -> Iterator[Database[Any]]:
    """Returns an open database in memory."""
    yield from _opened(peon_memory_url, peon_open_arguments)


@pytest.fixture
def peon_file_database(peon_file_url: URL, peon_open_arguments: Mapping[str, Any]) -> Iterator[Database[Any]]:
    """Returns an open database in a file."""
    yield from _opened(peon_file_url, peon_open_arguments)


@pytest.fixture
def peon_postgresql_database(
    peon_postgresql_url: URL, peon_open_arguments: Mapping[str, Any]
) -> Iterator[Database[Any]]:
    """Returns an open database on PostgreSQL; skips the test if no URL is given."""
    yield from _opened(peon_postgresql_url, peon_open_arguments)


@pytest.fixture
def peon_database(peon_url: URL, peon_open_arguments: Mapping[str, Any]) -> Iterator[Database[Any]]:
    """Returns an open database; runs the test on each kind of database."""
    yield from _opened(peon_url, peon_open_arguments)


def _opened(url: URL, arguments: Mapping[str, Any]) -> Iterator[Database[Any]]:
    from peon import Database

    with Database.open(url=url, **arguments) as database:
        yield database
