"""`peon migrate`."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.peon_command import Peon
from sqlalchemy import URL

from peon.persistence.migrations import descriptions, revisions

pytestmark = pytest.mark.postgresql_too("migrations")

HEAD = revisions()[-1]


def test_a_database_is_created(peon: Peon, lasting_url: URL) -> None:
    done = peon("migrate", "--url", address(lasting_url), "--json")
    expected = {"before": None, "after": HEAD, "copy_before": None, "done": True}
    assert (done.code, {key: value for key, value in done.document.items() if key != "database"}) == (0, expected)

    assert "already" in peon("migrate", "--url", address(lasting_url)).out
    assert peon("migrate", "current", "--url", address(lasting_url), "--json").document["revision"] == HEAD


def test_a_populated_file_is_copied_first_and_the_copy_is_named(peon: Peon, sqlite_url: URL) -> None:
    thaw("003_projections", file_of(sqlite_url))
    done = peon("migrate", "--url", address(sqlite_url))

    assert "from 003_projections" in done.out
    copy = file_of(sqlite_url).with_name("peon.db.003_projections.backup")
    assert str(copy) in done.out
    assert copy.exists()


def test_going_back_asks_first(peon: Peon, migrated_lasting_url: URL) -> None:
    at = ("--url", address(migrated_lasting_url))
    assert peon("migrate", "--to", "004", *at, input="n\n").code == 1
    assert "would migrate" in peon("migrate", "--to", "004", "--dry-run", *at).out
    assert peon("migrate", "current", "--json", *at).document["revision"] == HEAD

    assert peon("migrate", "--to", "004", "--yes", *at).code == 0
    assert peon("migrate", "current", "--json", *at).document["revision"] == "004_coordination"
    assert peon("migrate", *at).code == 0


def test_removing_all_tables_says_so(peon: Peon, migrated_sqlite_url: URL) -> None:
    done = peon("migrate", "--to", "base", "--url", address(migrated_sqlite_url), input="n\n")
    assert "Remove all tables" in done.err
    assert "log" in done.err


def test_an_unknown_revision_is_wrong_usage(peon: Peon, sqlite_url: URL) -> None:
    for name in ("999", "00", ""):
        done = peon("migrate", "--to", name, "--url", address(sqlite_url))
        assert done.code == 2
        assert HEAD in done.err
    assert not file_of(sqlite_url).exists()


def test_the_statements_are_those_from_the_present_revision_on(peon: Peon, sqlite_url: URL) -> None:
    path = thaw("004_coordination", file_of(sqlite_url))
    before = path.read_bytes()
    statements = peon("migrate", "--sql", "--url", address(sqlite_url)).out

    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def test_the_statements_need_no_database(peon: Peon, sqlite_url: URL) -> None:
    for url in (address(sqlite_url),):
        done = peon("migrate", "--sql", "--url", url)
        assert done.code == 0
        assert "CREATE TABLE events" in done.out
    assert not file_of(sqlite_url).parent.exists()


def test_the_history_marks_the_present_revision(peon: Peon, sqlite_url: URL) -> None:
    thaw("002_append_only", file_of(sqlite_url))
    found = peon("migrate", "history", "--json", "--url", address(sqlite_url)).document["revisions"]

    assert [each["revision"] for each in found if each["current"]] == ["002_append_only"]
    assert {each["revision"]: each["description"] for each in found} == descriptions()
    assert descriptions()[HEAD] in peon("migrate", "history", "--url", address(sqlite_url)).out


def test_a_newer_database_is_refused(peon: Peon, migrated_sqlite_url: URL) -> None:
    set_revision(file_of(migrated_sqlite_url), "999_later")
    done = peon("migrate", "--url", address(migrated_sqlite_url))
    assert done.code == 3
    assert "install a newer version" in done.err
    assert "999_later" in peon("migrate", "current", "--url", address(migrated_sqlite_url)).out


@pytest.mark.parametrize("where", ["before", "after"])
def test_options_may_stand_before_the_name_of_a_subcommand(peon: Peon, migrated_sqlite_url: URL, where: str) -> None:
    options = ("--url", address(migrated_sqlite_url), "--json")
    arguments = ("migrate", *options, "current") if where == "before" else ("migrate", "current", *options)
    assert peon(*arguments).document["revision"] == HEAD


def test_the_version_table_of_another_tree_is_reported(peon: Peon, migrated_sqlite_url: URL) -> None:
    set_revision(file_of(migrated_sqlite_url), "a1b2c3")
    for command in ("migrate", "settings set a 1"):
        done = peon(*command.split(), "--url", address(migrated_sqlite_url))
        assert done.code == 3, command
        assert "another Alembic tree" in done.err


def test_a_configured_version_table_is_used(peon: Peon, lasting_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", "peon_version")
    at = ("--url", address(lasting_url))
    assert "CREATE TABLE peon_version" in peon("migrate", "--sql", *at).out
    assert peon("migrate", *at).code == 0
    assert peon("migrate", "current", "--json", *at).document["revision"] == HEAD
    assert peon("status", "--check", *at).code == 0


def test_a_failed_migration_names_the_copy(peon: Peon, sqlite_url: URL) -> None:
    path = thaw("001_initial", file_of(sqlite_url))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE projection_positions (a)")
    done = peon("migrate", "--url", address(sqlite_url))
    assert done.code == 3
    assert "left as it was" in done.err
    assert "001_initial.backup" in done.err


def set_revision(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()
