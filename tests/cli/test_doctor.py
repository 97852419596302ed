"""`peon doctor`."""

import sqlite3
from contextlib import closing

import pytest
from helpers.damaged_databases import bare_sql
from helpers.migrated_databases import address, file_of
from helpers.orchestration_scene import SCENE
from helpers.peon_command import Peon
from sqlalchemy import URL, make_url

from peon import Database


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(SCENE)
    return "--url", address(migrated_lasting_url)


def test_a_sound_database_passes(peon: Peon, at: tuple[str, str]) -> None:
    done = peon("doctor", "--deep", *at)
    assert (done.code, done.err) == (0, "")
    assert "0 failures" in done.out
    assert "projected rows" in done.out


def test_a_failure_is_shown_with_the_command_that_repairs_it(peon: Peon, at: tuple[str, str]) -> None:
    bare_sql("DELETE FROM projection_commits")(make_url(at[1]))
    assert peon("doctor", *at).code == 0
    done = peon("doctor", "--deep", "--json", *at)
    assert done.code == 1
    assert done.document["failures"] == 1
    (told,) = [each for each in done.document["checks"] if each["outcome"] == "failure"]
    assert (told["check"], told["reason"][:23]) == ("projected rows", "5 values differ from th")
    assert "peon rebuild --url" in told["advice"]
    shown = peon("doctor", "--deep", *at).out
    assert "peon rebuild --url" in "".join(shown.split("\n")).replace("│", "")
    assert "\n1 failure, " in shown


def test_no_database_is_not_available(peon: Peon, sqlite_url: URL) -> None:
    done = peon("doctor", "--url", address(sqlite_url))
    assert (done.code, done.out) == (3, "")


def test_a_file_that_cannot_be_opened_is_examined_from_outside(peon: Peon, sqlite_url: URL) -> None:
    file_of(sqlite_url).parent.mkdir(mode=0o700)
    file_of(sqlite_url).write_bytes(b"something else" * 100)
    file_of(sqlite_url).chmod(0o644)
    done = peon("doctor", "--json", "--url", address(sqlite_url))
    assert done.code == 3
    told = {each["check"]: each["outcome"] for each in done.document["checks"]}
    assert (told["permissions"], told["opening"], told["sequences"]) == ("warning", "failure", "not checked")


def test_a_file_that_another_process_has_locked_is_not_available(
    peon: Peon, migrated_sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "0.01")
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", str(file_of(migrated_sqlite_url).parent))
    with closing(sqlite3.connect(file_of(migrated_sqlite_url), isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        done = peon("doctor")
    assert done.code == 3
    assert "locked" in done.out
