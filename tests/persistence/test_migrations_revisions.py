"""Databases of every revision can be upgraded to the newest one and downgraded again, with their rows."""

import ast
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from helpers.migrated_databases import (
    FROZEN,
    cut_to,
    file_of,
    migrate,
    names_in,
    populate,
    revision_of,
    rows_of,
    schema_of,
    thaw,
)
from sqlalchemy import URL

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database
from peon.persistence.migrations import alembic_folder, revisions


def test_the_known_revisions_are_those_of_alembic_in_its_order() -> None:
    scripts = ScriptDirectory.from_config(Config(str(alembic_folder() / "alembic.ini")))
    in_order = list(reversed([*scripts.walk_revisions()]))

    assert revisions() == tuple(script.revision for script in in_order)
    assert revisions()[:2] == ("001_initial", "002_append_only")
    assert [Path(script.path).stem for script in in_order] == [script.revision for script in in_order]


def test_revision_scripts_import_nothing_from_peon() -> None:
    for path in (alembic_folder() / "alembic" / "versions").glob("*.py"):
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert {name.partition(".")[0] for name in imported} <= {"alembic", "sqlalchemy", "uuid"}, path


def test_there_is_a_frozen_database_of_every_revision() -> None:
    assert {path.stem for path in FROZEN.glob("*.db")} == set(revisions())
    assert [name for name in names_in(FROZEN) if name.endswith(("-wal", "-shm"))] == []


@pytest.mark.parametrize("revision", revisions())
def test_a_database_of_any_revision_becomes_like_a_new_one_with_its_rows(
    sqlite_url: URL, tmp_path: Path, revision: str
) -> None:
    thaw(revision, file_of(sqlite_url))
    before = rows_of(sqlite_url)
    assert all(before.values()), "a table without rows shows nothing"
    fresh = sqlite_url.set(database=str(tmp_path / "fresh.db"))
    Database.open(url=fresh, maintain_projections=False).close()

    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        log = database.events.replay_all()

    assert schema_of(sqlite_url) == schema_of(fresh)
    assert cut_to(before, rows_of(sqlite_url)) == before
    assert revision_of(sqlite_url) == [revisions()[-1]]
    assert [stored.sequence for stored in log] == list(range(1, len(before["events"]) + 1))
    assert len({type(stored.event) for stored in log}) >= 12


@pytest.mark.parametrize("revision", revisions())
def test_sequences_continue_in_a_database_of_any_revision(
    sqlite_url: URL, revision: str, an_event: OrchestrationEvent
) -> None:
    thaw(revision, file_of(sqlite_url))

    with Database.open(url=sqlite_url, maintain_projections=False) as database:
        last = database.events.last_sequence()
        assert [stored.sequence for stored in database.events.append_all([an_event, an_event])] == [last + 1, last + 2]


@pytest.mark.postgresql_too("migrations")
def test_an_upgrade_in_steps_equals_an_upgrade_at_once(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, revisions()[0], tmp_path)
    for revision in revisions()[1:]:
        migrate(lasting_url, command.upgrade, revision)
        assert cut_to(rows, rows_of(lasting_url)) == rows
    in_steps = schema_of(lasting_url)
    migrate(lasting_url, command.downgrade, "base")

    Database.open(url=lasting_url, maintain_projections=False).close()

    assert schema_of(lasting_url) == in_steps


def test_each_revision_can_be_downgraded_and_upgraded_again(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, revisions()[-1], tmp_path)
    for revision in reversed(revisions()):
        schema = schema_of(lasting_url)
        assert revision_of(lasting_url) == [revision]

        migrate(lasting_url, command.downgrade, "-1")
        left = rows_of(lasting_url)
        assert left == cut_to(left, rows)
        assert schema_of(lasting_url) != schema

        migrate(lasting_url, command.upgrade, "+1")
        assert schema_of(lasting_url) == schema
        assert cut_to(left, rows_of(lasting_url)) == left

        migrate(lasting_url, command.downgrade, "-1")
    assert rows_of(lasting_url) == {}
    assert {row[0] for row in schema_of(lasting_url) if row[0] in ("trigger", "view")} == set()

    with Database.open(url=lasting_url, maintain_projections=False) as database:
        assert database.events.replay_all() == []


def test_a_downgrade_by_one_keeps_every_row(lasting_url: URL, tmp_path: Path) -> None:
    rows = populate(lasting_url, "002_append_only", tmp_path)

    migrate(lasting_url, command.downgrade, "001_initial")

    assert rows_of(lasting_url) == rows
