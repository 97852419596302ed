"""Databases are refused if they are out of date, too new, or belong to another application."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from helpers.migrated_databases import engine_of, file_of, names_in, populate, revision_of, schema_of, state_of, thaw
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL, text

from peon.config import AppConfig
from peon.orchestration import ProjectRenamed
from peon.persistence import Database, SchemaOutOfDate, SchemaTooNew
from peon.persistence.migrations import revisions

FUTURE = "999_future"


@pytest.mark.parametrize("revision", rest_is_slow([None, "001_initial"], first=1))
def test_the_error_for_a_database_out_of_date_names_the_command_to_run(
    lasting_url: URL, tmp_path: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if revision:
        populate(lasting_url, revision, tmp_path)

    with pytest.raises(SchemaOutOfDate) as caught:
        Database.open(url=lasting_url, migrate=False, maintain_projections=False)

    assert (caught.value.revision, caught.value.head) == (revision, revisions()[-1])
    assert (revision or "base") in str(caught.value)
    run_advice(caught.value, monkeypatch)
    Database.open(url=lasting_url, migrate=False, maintain_projections=False).close()


NOT_IN_AN_ADDRESS_OF_2_0 = pytest.mark.skipif(
    sqlalchemy.__version__ < "2.1", reason="SQLAlchemy 2.0 does not quote the file name in an address"
)


@pytest.mark.parametrize(
    "name",
    rest_is_slow(
        ["it's my $HOME.db", pytest.param("a?b=c&d%20#e.db", marks=NOT_IN_AN_ADDRESS_OF_2_0), "größe;`\\n.db"], first=1
    ),
)
def test_the_command_works_for_any_file_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "data" / name))

    with pytest.raises(SchemaOutOfDate) as caught:
        Database.open(url=url, migrate=False, maintain_projections=False)

    run_advice(caught.value, monkeypatch)
    Database.open(url=url, migrate=False, maintain_projections=False).close()
    assert names_in(tmp_path / "data") == [name]


def run_advice(error: SchemaOutOfDate, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, advice = str(error).partition("Run:  ")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    done = subprocess.run(advice, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.returncode == 0, done.stderr


def test_an_outdated_database_is_refused_at_once_while_another_connection_writes(populated_url: URL) -> None:
    with closing(sqlite3.connect(file_of(populated_url))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        config = AppConfig(database={"busy_timeout": 0})

        with pytest.raises(SchemaOutOfDate):
            Database.open(config, url=populated_url, migrate=False, maintain_projections=False)


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_file_of_a_newer_version_is_refused_and_not_touched(sqlite_url: URL, migrate_it: bool) -> None:
    path = thaw(revisions()[-1], file_of(sqlite_url))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [FUTURE])
        connection.commit()
    content, modified = path.read_bytes(), path.stat().st_mtime_ns

    with pytest.raises(SchemaTooNew) as caught:
        Database.open(url=sqlite_url, migrate=migrate_it, maintain_projections=False)

    for detail in (str(path), FUTURE, revisions()[-1]):
        assert detail in str(caught.value)
    assert (caught.value.revision, caught.value.head) == (FUTURE, revisions()[-1])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, modified)
    assert names_in(path.parent) == ["peon.db"]


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_file_of_another_application_is_refused_and_not_touched(sqlite_url: URL, migrate_it: bool) -> None:
    path = file_of(sqlite_url)
    path.parent.mkdir()
    # Most applications use a rollback journal.
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);"
            "INSERT INTO alembic_version VALUES ('ae1027a6acf');"
        )
    content = path.read_bytes()

    with pytest.raises(SchemaTooNew):
        Database.open(url=sqlite_url, migrate=migrate_it, maintain_projections=False)

    assert path.read_bytes() == content
    assert names_in(path.parent) == ["peon.db"]


def test_a_log_in_a_later_schema_of_the_search_path_is_ignored(postgresql_url: URL, url_before_another: URL) -> None:
    with Database.open(url=postgresql_url, maintain_projections=False) as behind:
        stored = behind.events.append_all([ProjectRenamed(project_id=uuid4(), name="tides")])
        with pytest.raises(SchemaOutOfDate):
            Database.open(url=url_before_another, migrate=False)
        with Database.open(url=url_before_another, maintain_projections=False) as database:
            assert database.events.replay_all() == []
            database.events.append_all([ProjectRenamed(project_id=uuid4(), name="tides")] * 2)
        assert behind.events.replay_all() == stored
    assert schema_of(url_before_another) == schema_of(postgresql_url)
    assert revision_of(url_before_another) == revision_of(postgresql_url) == [revisions()[-1]]


def test_a_table_of_revisions_in_a_later_schema_is_ignored(postgresql_url: URL, url_before_another: URL) -> None:
    with engine_of(postgresql_url) as engine, engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version AS SELECT 'theirs' AS version_num"))

    Database.open(url=url_before_another).close()

    assert revision_of(url_before_another) == [revisions()[-1]]
    assert revision_of(postgresql_url) == ["theirs"]


@pytest.mark.parametrize("migrate_it", [True, False])
def test_a_server_database_of_a_newer_version_is_refused_and_not_touched(postgresql_url: URL, migrate_it: bool) -> None:
    Database.open(url=postgresql_url, maintain_projections=False).close()
    set_revision(postgresql_url, FUTURE)
    before = state_of(postgresql_url)

    with pytest.raises(SchemaTooNew) as caught:
        Database.open(url=postgresql_url, migrate=migrate_it, maintain_projections=False)

    for detail in (str(postgresql_url.host), FUTURE, revisions()[-1]):
        assert detail in str(caught.value)
    assert state_of(postgresql_url) == before


def set_revision(url: URL, revision: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": revision})


@pytest.mark.parametrize("place", ["before the host", "in the query"])
def test_no_refusal_shows_the_password(postgresql_url: URL, place: str) -> None:
    secret = f"hunter{uuid4().hex}"
    url = (
        postgresql_url.set(password=secret)
        if place == "before the host"
        else postgresql_url.update_query_dict({"password": secret})
    )

    with pytest.raises(SchemaOutOfDate) as out_of_date:
        Database.open(url=url, migrate=False, maintain_projections=False)
    Database.open(url=url, maintain_projections=False).close()
    set_revision(url, FUTURE)
    with pytest.raises(SchemaTooNew) as too_new:
        Database.open(url=url, maintain_projections=False)

    for error in (out_of_date.value, too_new.value):
        assert secret not in str(error)
        assert secret not in repr(error)
        assert secret not in error.database
