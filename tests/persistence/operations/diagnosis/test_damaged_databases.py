"""Every way to damage a database is noticed by one check, which says what to do; and nothing is written.

The page docs/reference/damaged-databases.md has the same table. To write it again:
`WRITE_DAMAGED_DATABASES=1 pytest -n 0 tests/persistence/operations/diagnosis/test_damaged_databases.py`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from helpers.damaged_databases import DAMAGES, Damage
from helpers.migrated_databases import file_of
from helpers.orchestration_scene import SCENE, THREAD
from sqlalchemy import URL

from peon.persistence import Database, EventQuery
from peon.persistence.log import tag_index
from peon.persistence.migrations import revisions
from peon.persistence.operations.diagnosis import CHECKS, Diagnosed, Outcome, diagnose
from peon.persistence.operations.reading import opened_for_reading

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "damaged-databases.md"
BACKENDS = {"file": "SQLite", "postgresql": "PostgreSQL"}
CASES = [(damage, where) for damage in DAMAGES for where in damage.where]
UNRELATED = ("SQLite version", "free space", "file system")
"""Checks of the machine: what they say has nothing to do with the damage."""


def fill(url: URL) -> None:
    """Appends the scene, and fills the tag index."""
    with pytest.MonkeyPatch.context() as patch, Database.open(url=url) as database:
        patch.setattr(tag_index, "TAIL_EVENTS", 0)
        database.events.append_all(SCENE)
        assert list(database.events.stream(query=EventQuery(thread_id=THREAD)))


@pytest.fixture(scope="module")
def filled_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "peon.db"
    shutil.copy(migrated_file, path)
    fill(URL.create("sqlite", database=str(path)))
    return path


@pytest.fixture
def filled_url(request: pytest.FixtureRequest, where: str) -> URL:
    if where == "postgresql":
        url: URL = request.getfixturevalue("migrated_postgresql_url")
        fill(url)
        return url
    url = request.getfixturevalue("sqlite_url")
    file_of(url).parent.mkdir(mode=0o700)
    shutil.copy(request.getfixturevalue("filled_file"), file_of(url))
    file_of(url).chmod(0o600)
    return url


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    written: list[str] = []
    yield written
    if os.environ.get("WRITE_DAMAGED_DATABASES"):
        head = PAGE.read_text(encoding="utf-8").partition("|---|---|---|---|\n")
        PAGE.write_text(head[0] + head[1] + "".join(f"{row}\n" for row in written), encoding="utf-8")


def examined(url: URL, *, deep: bool = False, slow: bool = True) -> list[Diagnosed]:
    """Returns all findings; unless `slow`, without the comparison of the schema, which takes longer than the rest."""
    checks = [check for check in CHECKS if slow or check.name != "schema"]
    with opened_for_reading(url=url, temporary_tables=deep) as database:
        return list(diagnose(database, deep=deep, checks=checks))


def wrong(found: list[Diagnosed]) -> list[Diagnosed]:
    bad = (Outcome.WARNING, Outcome.FAILURE)
    return [each for each in found if each.finding.outcome in bad and each.check not in UNRELATED]


def state_of(url: URL) -> object:
    """Returns what a write would change."""
    if url.get_backend_name() == "sqlite":
        return {each.name: each.read_bytes() for each in file_of(url).parent.iterdir() if each.suffix != ".db-shm"}
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        names = sorted(sqlalchemy.inspect(connection).get_table_names())
        state = [(name, sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {name}")))) for name in names]
    engine.dispose()
    return state


@pytest.mark.parametrize("where", BACKENDS)
def test_nothing_is_wrong_with_a_sound_database(filled_url: URL, where: str) -> None:
    before = state_of(filled_url)
    found = examined(filled_url, deep=True)
    assert wrong(found) == []
    assert [each for each in found if each.finding.outcome is Outcome.NOT_CHECKED] == []
    assert state_of(filled_url) == before


@pytest.mark.parametrize(("damage", "where"), CASES, ids=[f"{damage.what}, {where}" for damage, where in CASES])
def test_the_damage_is_noticed(filled_url: URL, damage: Damage, where: str, rows: list[str]) -> None:
    damage.inflict(filled_url)
    before = state_of(filled_url)
    if damage.is_deep:
        assert damage.check not in [each.check for each in wrong(examined(filled_url, slow=False))]
    found = examined(filled_url, deep=damage.is_deep, slow=damage.check in ("schema", "append-only", "revision"))
    assert state_of(filled_url) == before

    by_check = [each.finding for each in found if each.check == damage.check]
    assert {each.outcome for each in by_check} == {Outcome(damage.outcome)}, found
    (told, *_) = [each for each in by_check if damage.reason in each.reason]
    assert damage.advice in told.advice
    opening = [each.finding.outcome for each in found if each.check == "opening"]
    assert (opening == [Outcome.OK]) is damage.is_open

    rows.append(row_of(damage, where, filled_url, found))
    if not os.environ.get("WRITE_DAMAGED_DATABASES"):
        # The messages of `integrity_check` are those of a version of SQLite.
        columns = 4 if damage.check == "integrity" else None
        written = PAGE.read_text(encoding="utf-8").splitlines()
        assert rows[-1].split("|")[:columns] in [line.split("|")[:columns] for line in written]


def row_of(damage: Damage, where: str, url: URL, found: list[Diagnosed]) -> str:
    said = []
    for check, finding in wrong(found):
        parts = [f"**{check}**: {finding.outcome}", finding.reason, *([finding.advice] if finding.advice else [])]
        said.append(". ".join(parts))
    text = "<br>".join(said)
    for address in (str(url.render_as_string()), url.render_as_string(hide_password=False)):
        text = text.replace(address, "…")
    if where == "file":
        text = text.replace(str(file_of(url).parent), "data")
    text = text.replace(revisions()[-1], "…")
    return f"| {damage.what} | {BACKENDS[where]} | {damage.check} | {text.replace('|', ' ')} |"


@pytest.mark.skipif("WRITE_DAMAGED_DATABASES" in os.environ, reason="the page is being written")
def test_the_page_has_each_damage_once() -> None:
    written = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(written) == len(CASES) + 1
