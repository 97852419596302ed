"""Runs the `alembic` command like an operator."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from helpers.command_processes import run_alembic
from helpers.slow_proofs import rest_is_slow
from sqlalchemy import URL

from peon.config import AppConfig
from peon.persistence import Database
from peon.persistence.backends.address import DATABASE_FILE
from peon.persistence.migrations import alembic_folder, revisions

CHECKOUT = Path(__file__).parents[1]

Alembic = Callable[..., subprocess.CompletedProcess[str]]

in_checkout = pytest.mark.skipif(
    not (CHECKOUT / "alembic.ini").is_file(), reason="there is no alembic.ini beside the tests: not a checkout"
)


def run_in_new_interpreter(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def alembic(tmp_path: Path) -> Alembic:
    """Runs `alembic` outside a checkout with the installed scripts; fails the test if the command fails."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = run_alembic(folder, "-c", str(alembic_folder() / "alembic.ini"), *arguments)
        assert done.returncode == 0, done.stderr
        assert list(folder.iterdir()) == [], "something was left in the working directory"
        return done

    return alembic


def address(url: URL) -> str:
    return f"url={url.render_as_string(hide_password=False)}"


def default_file() -> Path:
    return AppConfig().general.data_dir / DATABASE_FILE


def revision_of(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def schema_of(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return [(name, " ".join(sql.split())) for name, sql in rows]


@in_checkout
def test_upgrade_head_in_a_checkout_needs_no_configuration(tmp_path: Path) -> None:
    assert not default_file().parent.exists()
    assert default_file().is_relative_to(tmp_path)

    done = run_in_new_interpreter(CHECKOUT, "upgrade", "head")

    assert done.returncode == 0, done.stderr
    assert revision_of(default_file()) == [(revisions()[-1],)]
    with Database.open(migrate=False) as database:
        assert database.engine.url.database == str(default_file())
        assert database.events.replay_all() == []


def test_the_installed_scripts_reach_the_same_default_database(alembic: Alembic) -> None:
    alembic("upgrade", "head")

    Database.open(migrate=False).close()
    assert revision_of(default_file()) == [(revisions()[-1],)]
    assert default_file().stat().st_mode & 0o777 == 0o600
    assert default_file().parent.stat().st_mode & 0o777 == 0o700


def test_the_command_reads_the_configuration_of_the_application(
    alembic: Alembic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", str(tmp_path / "named by the environment"))

    alembic("upgrade", "head")

    Database.open(migrate=False).close()
    assert revision_of(tmp_path / "named by the environment" / "peon.db") == [(revisions()[-1],)]


def test_the_command_creates_the_same_tables_as_opening(alembic: Alembic, sqlite_url: URL) -> None:
    alembic("upgrade", "head")
    Database.open(url=sqlite_url).close()

    assert schema_of(default_file()) == schema_of(Path(str(sqlite_url.database)))


def test_downgrade_current_and_history(alembic: Alembic) -> None:
    first, last = revisions()[0], revisions()[-1]
    alembic("upgrade", "head")
    assert alembic("current").stdout == f"{last} (head)\n"

    alembic("downgrade", "-1")
    assert alembic("current").stdout == f"{revisions()[-2]}\n"

    alembic("downgrade", "base")
    assert alembic("current").stdout == ""
    assert revision_of(default_file()) == []

    history = alembic("history").stdout.splitlines()
    assert len(history) == len(revisions())
    assert history[0].startswith(f"{revisions()[-2]} -> {last} (head)")
    assert history[-1].startswith(f"<base> -> {first}")


def test_printed_sql_has_the_effect_of_the_command(alembic: Alembic, sqlite_url: URL, tmp_path: Path) -> None:
    printed = alembic("upgrade", "head", "--sql").stdout

    assert not default_file().parent.exists()
    path = tmp_path / "by hand.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(printed)
    Database.open(url=sqlite_url).close()
    assert revision_of(path) == [(revisions()[-1],)]
    assert schema_of(path) == schema_of(Path(str(sqlite_url.database)))


def test_printed_sql_for_postgresql_creates_a_database_that_opens(
    alembic: Alembic, postgresql_url: URL, url_before_another: URL
) -> None:
    Database.open(url=postgresql_url).close()
    printed = alembic("-x", address(url_before_another), "upgrade", "head", "--sql").stdout

    options = str(url_before_another.query["options"])
    server = url_before_another.set(drivername="postgresql", query={})
    with psycopg.connect(server.render_as_string(hide_password=False), options=options, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()").fetchone() == (
            0,
        )
        connection.execute(printed.encode())
    Database.open(url=url_before_another, migrate=False).close()


@pytest.mark.slow
def test_the_command_uses_the_first_schema_of_the_search_path(
    alembic: Alembic, postgresql_url: URL, url_before_another: URL
) -> None:
    Database.open(url=postgresql_url).close()

    assert alembic("-x", address(url_before_another), "current").stdout == ""
    alembic("-x", address(url_before_another), "upgrade", "head")
    Database.open(url=url_before_another, migrate=False).close()
    assert "No new upgrade operations detected." in alembic("-x", address(url_before_another), "check").stdout
    alembic("-x", address(url_before_another), "downgrade", "base")
    assert alembic("-x", address(url_before_another), "current").stdout == ""
    Database.open(url=postgresql_url, migrate=False).close()


def test_the_argument_data_dir_names_the_folder(
    alembic: Alembic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEON_DATABASE__URL", f"sqlite:///{tmp_path}/configured.db")

    alembic("-x", "data_dir=~/given folder", "upgrade", "head")

    assert revision_of(tmp_path / "given folder" / "peon.db") == [(revisions()[-1],)]
    assert not (tmp_path / "configured.db").exists()
    assert not default_file().exists()


def test_the_argument_url_names_the_database_and_check_finds_no_difference(alembic: Alembic, lasting_url: URL) -> None:
    alembic("-x", address(lasting_url), "upgrade", "head")

    assert "No new upgrade operations detected." in alembic("-x", address(lasting_url), "check").stdout
    Database.open(url=lasting_url, migrate=False).close()
    assert not default_file().exists()


def failure(*arguments: str, folder: Path, run: Alembic = run_alembic) -> str:
    """Runs a command that must fail; returns its error, which must be one line."""
    done = run(folder, "-c", str(alembic_folder() / "alembic.ini"), *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("FAILED: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    rest_is_slow(
        [
            (["-x", "path=here"], "-x takes either url=… or data_dir=…"),
            (["-x", "url=sqlite:///a.db", "-x", "data_dir=here"], "-x takes either url=… or data_dir=…"),
            (["-x", "url=here.db"], "allowed: an SQLAlchemy URL, sqlite:///"),
            (["-x", "url=mysql://localhost/peon"], "allowed: an SQLAlchemy URL, sqlite:///"),
            (["-x", "url=postgresql+psycopg://u:hunter2@127.0.0.1:1/peon"], "127.0.0.1"),
        ],
        first=2,
    ),
)
def test_the_error_for_a_wrong_address_is_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    message = failure(*arguments, "upgrade", "head", folder=tmp_path)

    assert expected in message
    assert "hunter2" not in message
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_a_wrong_setting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "long")

    assert "PEON_DATABASE__BUSY_TIMEOUT" in failure("upgrade", "head", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", rest_is_slow([["upgrade", "head"], ["downgrade", "base"], ["current"]], first=1))
def test_the_error_for_a_database_that_is_too_new_is_one_line(
    sqlite_url: URL, tmp_path: Path, command: list[str]
) -> None:
    path = Path(str(sqlite_url.database))
    Database.open(url=sqlite_url).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '999_future'")
        connection.commit()
    content = path.read_bytes()

    message = failure("-x", address(sqlite_url), *command, folder=tmp_path)

    for detail in (str(path), "999_future", revisions()[-1]):
        assert detail in message
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", rest_is_slow(["a text", "a folder", "below a text"], first=1))
def test_the_error_for_a_path_that_is_not_a_database_is_one_line(tmp_path: Path, kind: str) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The tide comes in at noon.\n" * 100)
    path = {"a text": note, "a folder": tmp_path, "below a text": note / "peon.db"}[kind]

    message = failure("-x", f"url=sqlite:///{path}", "upgrade", "head", folder=tmp_path)

    assert str(path) in message
    assert note.read_text() == "The tide comes in at noon.\n" * 100


def test_the_error_for_an_unknown_revision_is_one_line(tmp_path: Path) -> None:
    assert "999" in failure("upgrade", "999", folder=tmp_path, run=run_in_new_interpreter)


def test_a_failing_migration_is_rolled_back_and_its_error_is_one_line(sqlite_url: URL, tmp_path: Path) -> None:
    path = Path(str(sqlite_url.database))
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE settings (volume INTEGER)")
    before = schema_of(path)

    message = failure("-x", address(sqlite_url), "upgrade", "head", folder=tmp_path)

    assert "table settings already exists" in message
    assert schema_of(path) == before
    assert "alembic upgrade head" not in message, "that is what has just failed"


def test_rows_are_copied_before_the_command_changes_tables(alembic: Alembic, sqlite_url: URL) -> None:
    path = Path(str(sqlite_url.database))
    with Database.open(url=sqlite_url) as database, database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO settings VALUES ('theme', '1')")

    nothing = alembic("-x", address(sqlite_url), "upgrade", "head")
    down = alembic("-x", address(sqlite_url), "downgrade", "001_initial")
    up = alembic("-x", address(sqlite_url), "upgrade", "head")

    copies = [path.with_name(f"peon.db.{revision}.backup") for revision in (revisions()[-1], "001_initial")]
    assert nothing.stdout == ""
    for done, copy, revision in zip((down, up), copies, (revisions()[-1], "001_initial"), strict=True):
        assert str(copy) in done.stdout
        assert revision_of(copy) == [(revision,)]
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT * FROM settings").fetchall() == [("theme", "1")]


@pytest.mark.parametrize("command", rest_is_slow([["current"], ["check"], ["downgrade", "base"]], first=1))
def test_a_command_that_only_reads_creates_no_database(tmp_path: Path, command: list[str]) -> None:
    folder = tmp_path / "mistyped"

    said = failure("-x", f"data_dir={folder}", *command, folder=tmp_path)

    assert "there is no database" in said
    assert not folder.exists()
