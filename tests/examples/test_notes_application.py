"""The example application migrates tables of its own beside Peon's, and its autogenerate sees only its own."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from helpers.migrated_databases import address, engine_of
from sqlalchemy import URL, Column, Integer, Table, inspect, text

from peon.orchestration import ProjectCreated
from peon.persistence import Database
from peon.persistence.migrations import alembic_folder, revisions
from peon.persistence.schema import metadata as tables_of_peon

FOLDER = Path(__file__).parents[2] / "examples" / "notes_application"
HEAD = "notes_2"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the examples are only in a checkout")


@pytest.fixture
def application() -> ModuleType:
    return importlib.import_module("notes_application.application")


@pytest.fixture
def url(lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    monkeypatch.setenv("NOTES_DATABASE_URL", address(lasting_url))
    return lasting_url


@pytest.fixture
def database(application: ModuleType, url: URL) -> Iterator[Database]:
    with application.open_database() as database:
        database.events.append_all([ProjectCreated(project_id=uuid4(), name="tides", path="/tides")])
        yield database


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Returns the application's configuration of Alembic, with a copy of its tree."""
    shutil.copytree(FOLDER / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    config = Config(FOLDER / "alembic.ini")
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    return config


def tables_of(url: URL) -> set[str]:
    with engine_of(url) as engine:
        return set(inspect(engine).get_table_names())


def revision_in(url: URL, table: str) -> list[str]:
    with engine_of(url) as engine, engine.connect() as connection:
        return list(connection.scalars(text(f"SELECT version_num FROM {table}")))


@pytest.mark.postgresql_too("migrations")
def test_both_trees_are_migrated_at_each_start(application: ModuleType, database: Database, url: URL) -> None:
    thread_id = uuid4()
    application.add_note(database, thread_id, "ask for the tide table")

    with application.open_database() as again:
        assert application.notes_of(again, thread_id) == ["ask for the tide table"]
        assert application.notes_of(again, uuid4()) == []
        assert again.events.last_sequence() == 1
    assert tables_of(url) == {*tables_of_peon.tables, "notes", "alembic_version", "peon_version"}
    assert revision_in(url, "alembic_version") == [HEAD]
    assert revision_in(url, "peon_version") == [revisions()[-1]]


def test_autogenerate_finds_nothing_to_do(config: Config, database: Database) -> None:
    command.check(config)


def test_autogenerate_finds_only_the_own_change(
    config: Config, application: ModuleType, database: Database, url: URL
) -> None:
    drafts = Table("drafts", application.metadata, Column("id", Integer, primary_key=True))
    try:
        command.revision(config, "Drafts", autogenerate=True, rev_id="notes_3")
        command.upgrade(config, "head")
        command.check(config)
    finally:
        application.metadata.remove(drafts)

    script = (Path(str(config.get_main_option("script_location"))) / "versions" / "notes_3.py").read_text("utf-8")
    assert [line.strip() for line in script.splitlines() if "op." in line] == [
        "op.create_table('drafts',",
        "op.drop_table('drafts')",
    ]
    assert tables_of(url) > {"drafts", "notes", *tables_of_peon.tables}


def test_a_downgrade_of_the_application_leaves_peon_alone(
    config: Config, application: ModuleType, database: Database, url: URL
) -> None:
    database.close()
    command.downgrade(config, "notes_1")
    assert revision_in(url, "alembic_version") == ["notes_1"]
    command.downgrade(config, "base")

    assert tables_of(url) == {*tables_of_peon.tables, "alembic_version", "peon_version"}
    with application.open_database() as again:
        assert again.events.last_sequence() == 1
        assert application.notes_of(again, uuid4()) == []


def test_a_downgrade_of_peon_leaves_the_application_alone(
    application: ModuleType, database: Database, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = uuid4()
    application.add_note(database, thread_id, "ask for the tide table")
    database.close()
    monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", application.PEON_VERSION_TABLE)
    monkeypatch.setenv("PEON_DATABASE__URL", address(url))

    peon = Config(alembic_folder() / "alembic.ini")
    command.check(peon)
    command.downgrade(peon, "base")

    assert tables_of(url) == {"notes", "alembic_version", "peon_version"}
    with application.open_database() as again:
        assert again.events.last_sequence() == 0
        assert application.notes_of(again, thread_id) == ["ask for the tide table"]
