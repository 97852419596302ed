"""Alembic's Python interface (`alembic.command`), as an application or a deployment script calls it."""

import logging
import sqlite3
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, event, make_url

from peon.config import AppConfig
from peon.persistence import Database, create_engine
from peon.persistence.backends.address import database_url
from peon.persistence.migrations import alembic_folder, revisions

HEAD = revisions()[-1]


@pytest.fixture
def config() -> Config:
    """As the documentation of Alembic creates it: the configured database."""
    return Config(str(alembic_folder() / "alembic.ini"))


def configured() -> URL:
    return database_url(AppConfig())


def on(config: Config, url: URL) -> Config:
    address = url.render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))
    return config


def populate(url: URL) -> None:
    with Database.open(url=url) as database:
        database.settings.set("theme", 1)


def settings_in(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM settings").fetchall()


def test_upgrade_creates_the_configured_database(config: Config) -> None:
    command.upgrade(config, "head")

    Database.open(migrate=False).close()
    assert Path(str(configured().database)).stat().st_mode & 0o777 == 0o600


def test_stamp_creates_the_database_as_the_command_line_does(config: Config) -> None:
    command.stamp(config, "001_initial")

    with closing(sqlite3.connect(str(configured().database))) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("001_initial",)]


def test_the_usual_option_names_another_database(config: Config, lasting_url: URL) -> None:
    command.upgrade(on(config, lasting_url), "head")

    Database.open(url=lasting_url, migrate=False).close()
    assert not Path(str(configured().database)).exists()


def test_x_arguments_win_over_the_option(config: Config, sqlite_url: URL, tmp_path: Path) -> None:
    on(config, make_url(f"sqlite:///{tmp_path}/other.db")).cmd_opts = Namespace(x=[f"url={sqlite_url}"])

    command.upgrade(config, "head")

    Database.open(url=sqlite_url, migrate=False).close()
    assert not (tmp_path / "other.db").exists()


def test_a_wrong_address_is_refused_without_its_password(config: Config) -> None:
    config.set_main_option("sqlalchemy.url", "mysql://ada:hunter2@localhost/peon")
    with pytest.raises(CommandError, match=r"database\.url") as refused:
        command.upgrade(config, "head")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("look", [command.current, command.check, lambda config: command.downgrade(config, "base")])
def test_what_only_looks_creates_no_database(config: Config, look: Callable[[Config], object]) -> None:
    with pytest.raises(CommandError, match="there is no database"):
        look(config)
    assert not Path(str(configured().database)).exists()


def test_a_copy_is_saved_before_tables_change(config: Config, sqlite_url: URL) -> None:
    populate(sqlite_url)
    path = Path(str(sqlite_url.database))

    command.upgrade(on(config, sqlite_url), "head")
    assert list(path.parent.glob("*.backup")) == [], "nothing changed"
    command.downgrade(config, "base")

    assert settings_in(path.with_name(f"peon.db.{HEAD}.backup")) == [("theme", "1")]


@pytest.mark.parametrize("begin", [lambda engine: engine.begin(), lambda engine: engine.connect()])
def test_a_copy_is_saved_on_a_connection_of_the_caller(
    config: Config, sqlite_url: URL, begin: Callable[[sqlalchemy.Engine], Any]
) -> None:
    populate(sqlite_url)
    path = Path(str(sqlite_url.database))
    engine = create_engine(sqlite_url)
    with begin(engine) as config.attributes["connection"]:
        command.downgrade(config, "base")
    engine.dispose()

    assert settings_in(path.with_name(f"peon.db.{HEAD}.backup")) == [("theme", "1")]
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT * FROM events")


def test_a_connection_of_the_caller_keeps_its_transaction(config: Config, lasting_url: URL) -> None:
    engine = create_engine(lasting_url)
    with engine.connect() as connection:
        transaction = connection.begin()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        transaction.rollback()
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
    engine.dispose()


def test_a_newer_database_is_refused_on_a_connection_of_the_caller(config: Config, lasting_url: URL) -> None:
    Database.open(url=lasting_url).close()
    engine = create_engine(lasting_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '999_future'")
    with engine.begin() as config.attributes["connection"], pytest.raises(CommandError, match="newer version of peon"):
        command.downgrade(config, "base")
    engine.dispose()


def test_the_logging_of_the_application_stays_as_it_is(config: Config, sqlite_url: URL) -> None:
    root, ours = logging.getLogger(), logging.getLogger("alembic")
    before = (root.level, list(root.handlers), ours.level, list(ours.handlers))

    command.upgrade(on(config, sqlite_url), "head")
    command.current(config)

    assert (root.level, list(root.handlers), ours.level, list(ours.handlers)) == before


def test_the_statements_of_an_upgrade_are_the_same_when_opening(config: Config, tmp_path: Path) -> None:
    found: list[list[str]] = [[], []]

    def record(*arguments: Any) -> None:
        found[-1].append(" ".join(arguments[2].split()))

    opened, migrated = (make_url(f"sqlite:///{tmp_path}/{name}.db") for name in ("opened", "migrated"))
    event.listen(sqlalchemy.Engine, "before_cursor_execute", record)
    try:
        Database.open(url=opened, maintain_projections=False).close()
        found.append([])
        command.upgrade(on(config, migrated), "head")
    finally:
        event.remove(sqlalchemy.Engine, "before_cursor_execute", record)
    created = [[statement for statement in part if statement.startswith("CREATE")] for part in found]
    assert created[-1] == created[-2] != []
