"""`peon verify` and `peon rebuild`."""

import sys
from pathlib import Path
from uuid import uuid4

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.orchestration_scene import thread as created_thread
from helpers.own_events import Notes, codec, noted
from helpers.peon_command import Peon
from sqlalchemy import URL, text

from peon import Database
from peon.orchestration import ProjectCreated, ProjectRenamed


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(
            [ProjectCreated(project_id=uuid4(), name=f"project {number}", path="/p") for number in range(3)]
        )
    return "--url", address(migrated_lasting_url)


def damage(url: URL) -> None:
    with Database.open(url=url) as database, database.engine.begin() as connection:
        connection.execute(text("UPDATE projection_projects SET name = 'wrong' WHERE name = 'project 1'"))


def test_equal_tables_end_with_0(peon: Peon, at: tuple[str, str]) -> None:
    done = peon("verify", *at)
    assert (done.code, done.err) == (0, "")
    assert "equal" in done.out
    assert peon("verify", "--json", *at).document["projections"] == [{"projection": "orchestration", "differences": []}]


def test_differences_are_shown_and_end_with_1(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    damage(migrated_lasting_url)
    done = peon("verify", *at)
    assert done.code == 1
    for part in ("projection_projects", "name", "project 1", "wrong", "peon rebuild --url"):
        assert part in done.out

    done = peon("verify", "--json", *at)
    assert done.code == 1
    (difference,) = done.document["projections"][0]["differences"]
    assert (difference["table"], difference["expected"], difference["found"]) == (
        "projection_projects",
        "project 1",
        "wrong",
    )


def test_a_rebuild_repairs_the_tables(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    damage(migrated_lasting_url)
    assert peon("rebuild", "--dry-run", *at).code == 0
    assert peon("verify", *at).code == 1

    done = peon("rebuild", "--json", *at)
    assert (done.code, done.document["events"], done.document["done"]) == (0, 3, True)
    assert [each["projection"] for each in done.document["projections"]] == ["orchestration"]
    assert peon("verify", *at).code == 0


def test_a_rebuild_is_not_advised_for_events_that_cannot_be_applied(
    peon: Peon, at: tuple[str, str], migrated_lasting_url: URL
) -> None:
    with Database.open(url=migrated_lasting_url, maintain_projections=False) as database:
        database.events.append_all([ProjectRenamed(project_id=uuid4(), name="of no project")])
    assert peon("rebuild", *at).code == 0

    done = peon("verify", *at)

    assert done.code == 1
    assert "projection_problems" in done.out
    assert "could not be applied" in done.out
    assert "peon rebuild" not in done.out


def test_a_projection_of_the_application_is_imported(
    peon: Peon, at: tuple[str, str], migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "helpers.word_count_projection:WordCount"
    done = peon("rebuild", "--projection", name, "--json", *at)
    assert [each["projection"] for each in done.document["projections"]] == ["orchestration", "word_count"]
    assert peon("verify", "--projection", name, *at).code == 0

    # Without its code, it is left out, and the command says so.
    assert "word_count" in peon("verify", *at).err


def test_events_of_the_application_need_its_codec(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    thread = uuid4()
    own = ("--projection", "helpers.own_events:Notes")
    with Database.open(url=migrated_lasting_url, codec=codec, projections=[Notes()]) as database:
        project = next(iter(database.read_model.projects())).id
        database.events.append_all([created_thread(thread, of=project), noted(thread_id=thread)])

    assert peon("verify", *own, *at).code == 1
    assert peon("verify", *own, "--codec", "helpers.own_events:codec", *at).code == 0
    assert peon("rebuild", *own, "--codec", "helpers.own_events:codec", *at).code == 0

    with Database.open(url=migrated_lasting_url, codec=codec, projections=[Notes()]) as database:
        assert database.projections.verify() == []


@pytest.mark.parametrize("name", ["nothing", "helpers.own_events:nothing", "helpers.own_events:Notes"])
def test_a_codec_that_cannot_be_used_is_wrong_usage(peon: Peon, at: tuple[str, str], name: str) -> None:
    assert peon("verify", "--codec", name, *at).code == 2


def test_what_a_newer_version_has_built_is_replaced_only_on_purpose(
    peon: Peon, at: tuple[str, str], migrated_lasting_url: URL
) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as connection:
        connection.execute(text("UPDATE projection_positions SET version = 999"))
    refused = peon("rebuild", *at)
    assert refused.code == 1
    assert "peon rebuild --replace-newer --url" in refused.err
    assert peon("rebuild", "--replace-newer", *at, input="n\n").code == 1
    assert peon("verify", *at).code == 1

    assert peon("rebuild", "--replace-newer", "--yes", *at).code == 0
    assert peon("verify", *at).code == 0


@pytest.mark.parametrize("name", ["nothing", "no_such_module:Projection", "helpers.secret:Nothing", "json:dumps"])
def test_a_projection_that_cannot_be_imported_is_wrong_usage(peon: Peon, at: tuple[str, str], name: str) -> None:
    assert peon("verify", "--projection", name, *at).code == 2


def test_an_older_revision_is_reported(peon: Peon, sqlite_url: URL) -> None:
    path = thaw("001_initial", file_of(sqlite_url))
    before = path.read_bytes()
    for command in ("verify", "rebuild"):
        done = peon(command, "--url", address(sqlite_url))
        assert done.code == 3
        assert "001_initial" in done.err
        assert "peon migrate --url" in done.err
    assert path.read_bytes() == before


def test_the_working_directory_holds_the_module(
    peon: Peon, at: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_projections_of_a_test.py").write_text(
        "from helpers.word_count_projection import WordCount as Counted\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert peon("rebuild", "--projection", "own_projections_of_a_test:Counted", *at).code == 0
