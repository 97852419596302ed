"""A rebuild needs nothing but the log, whatever state the tables of a projection are in."""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from helpers.agent_session import long_session
from helpers.damaged_files import damage_middle, is_damaged
from helpers.orchestration_scene import SCENE, UNKNOWN, Opener, append_alone, renamed, rows_of_all_tables
from helpers.slow_proofs import rest_is_slow
from helpers.word_count_projection import SCENE as WORDS_SCENE
from helpers.word_count_projection import WordCount, words
from sqlalchemy import URL, inspect, select, text
from sqlalchemy.exc import NoReferencedTableError

from peon.persistence import Database, StoreUnavailable
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.orchestration.projection import OrchestrationProjection
from peon.persistence.schema import metadata

UNUSABLE = {
    "a table is missing": "DROP TABLE projection_message_chunks",
    "a parent is missing": "DROP TABLE projection_projects",
    "an index is missing": "DROP INDEX idx_projection_projects_sequence",
    "a column is missing": "ALTER TABLE projection_commits DROP COLUMN hash",
    "a column is new": "ALTER TABLE projection_commits ADD COLUMN note TEXT",
    "a column is new and required": "ALTER TABLE projection_commits ADD COLUMN note TEXT NOT NULL DEFAULT 'x'",
    "a column has another name": "ALTER TABLE projection_turns RENAME COLUMN error TO failure",
    "the table of positions is missing": "DROP TABLE projection_positions",
    "the table of positions has another shape": "ALTER TABLE projection_positions RENAME COLUMN version TO revision",
    "the table of problems is missing": "DROP TABLE projection_problems",
    "the table of problems has another shape": "ALTER TABLE projection_problems DROP COLUMN reason",
}


def run(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            statement += " CASCADE" if statement.startswith("DROP TABLE") else ""
        else:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.execute(text(statement))


def differences_of_shape(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_migrated})
        try:
            return compare_metadata(context, metadata)
        except NoReferencedTableError as missing:  # early releases of Alembic 1.18 cannot compare such tables
            return [missing]


def is_migrated(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or name in metadata.tables


@pytest.mark.parametrize("statement", rest_is_slow(UNUSABLE.values(), first=2), ids=UNUSABLE)
def test_tables_are_created_again(migrated_lasting_url: URL, statement: str, caplog: pytest.LogCaptureFixture) -> None:
    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.events.append_all(WORDS_SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        database.projections.catch_up()
        sound = rows_of_all_tables(database)
        run(database, statement)
        assert differences_of_shape(database) != []
    caplog.set_level(logging.WARNING, "peon")

    with Database.open(url=migrated_lasting_url, projections=[WordCount()], maintain_projections=False) as database:
        database.projections.rebuild()
        assert "creating the tables" in caplog.text
        assert differences_of_shape(database) == []
        assert rows_of_all_tables(database) == sound

    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.events.append_all([renamed("next")])
        assert [difference.table for difference in database.projections.verify()] == ["projection_problems"]
    caplog.clear()
    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.projections.rebuild()
    assert "creating the tables" not in caplog.text


@pytest.mark.parametrize(
    "statement", ["DROP TABLE {}", "ALTER TABLE {} RENAME COLUMN word TO term", "DROP INDEX idx_words"]
)
def test_tables_of_ones_own_are_created_again(open_empty: Opener, statement: str) -> None:
    database = open_empty(projections=[WordCount()])
    database.events.append_all(WORDS_SCENE)
    with database.engine.connect() as connection:
        before = connection.execute(select(words)).all()
    run(database, statement.format(words.name))

    database.projections.rebuild()

    assert database.projections.verify() == []
    with database.engine.connect() as connection:
        assert connection.execute(select(words)).all() == before
        assert [index["name"] for index in inspect(connection).get_indexes(words.name)] == ["idx_words"]


def test_positions_of_other_projections_that_were_lost_are_built_again(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        database.events.append_all(WORDS_SCENE)
        run(database, "DROP TABLE projection_positions")

    with Database.open(url=migrated_lasting_url, maintain_projections=False) as without:
        without.projections.rebuild()

    with Database.open(url=migrated_lasting_url, projections=[WordCount()]) as database:
        assert database.projections.verify() == []


@pytest.fixture(scope="module")
def filled_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "peon.db"
    shutil.copy(migrated_file, path)
    with Database.open(url=f"sqlite:///{path}") as database:
        database.events.append_all(long_session(60))
        # So that it has messages with chunks, which no turn has joined yet.
        database.events.append_all(SCENE)
        append_alone(database, renamed("x", UNKNOWN))
        database.projections.catch_up()
    return path


@pytest.fixture
def damaged(sqlite_url: URL, filled_file: Path) -> Callable[[str], Path]:
    """Makes a file with a session, and damages a table or an index of it."""
    path = Path(str(sqlite_url.database))

    def copy_and_damage(name: str) -> Path:
        path.parent.mkdir(mode=0o700)
        shutil.copy(filled_file, path)
        damage_middle(path, name)
        return path

    return copy_and_damage


def differing(database: Database) -> set[str]:
    """The problem is a difference by itself."""
    return {difference.table for difference in database.projections.verify()}


NAMES = [
    *(table.name for table in OrchestrationProjection.tables),
    "projection_positions",
    "projection_problems",
    "sqlite_autoindex_projection_messages_1",
    "idx_messages_turn",
]


@pytest.mark.parametrize("name", rest_is_slow(NAMES, first=3))
def test_a_damaged_page_of_a_table_is_repaired(
    damaged: Callable[[str], Path], sqlite_url: URL, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = damaged(name)
    assert is_damaged(path)

    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        database.projections.rebuild()
        assert differing(database) == {"projection_problems"}
    assert "damaged" in caplog.text

    with Database.open(url=sqlite_url) as database:
        database.events.append_all([renamed("next")])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
    assert not is_damaged(path)
    with Database.open(url=sqlite_url) as database:
        assert differing(database) == {"projection_problems"}


def test_a_damaged_page_does_not_keep_the_database_from_being_opened(
    damaged: Callable[[str], Path], sqlite_url: URL
) -> None:
    damaged("projection_messages")

    with Database.open(url=sqlite_url) as database:
        with pytest.raises(StoreUnavailable, match=r"rebuild\(\)"):
            database.read_model.snapshot()
        database.projections.rebuild()
        database.read_model.snapshot()


def test_a_damaged_page_is_repaired_in_an_event_loop(damaged: Callable[[str], Path], sqlite_url: URL) -> None:
    damaged("projection_messages")

    async def repair() -> None:
        async with await AsyncDatabase.open(url=sqlite_url, maintain_projections=False) as database:
            await database.projections.rebuild()
            assert len(await database.projections.verify()) == 1

    asyncio.run(repair())


def test_a_damaged_log_leaves_the_tables_as_they_were(damaged: Callable[[str], Path], sqlite_url: URL) -> None:
    damaged("events")

    with Database.open(url=sqlite_url) as database:
        before = database.read_model.snapshot()
        with pytest.raises(StoreUnavailable, match="damaged"):
            database.projections.rebuild()
        assert database.read_model.snapshot() == before
