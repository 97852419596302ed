"""`peon redact`."""

from uuid import UUID

import pytest
from helpers.migrated_databases import address
from helpers.own_events import codec, noted
from helpers.peon_command import Peon
from helpers.secret import SECRET
from helpers.streamed_text import PROJECT, SCENE, THREAD, whole
from sqlalchemy import URL

from peon import Database


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*SCENE, *whole(SECRET)])
    return "--url", address(migrated_lasting_url)


def stored(url: URL) -> str:
    with Database.open(url=url) as database:
        assert database.projections.verify() == []
        return str(database.events.replay_all()) + str(database.read_model.snapshot())


def test_the_events_of_a_thread_are_redacted(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    planned = peon("redact", "--thread", str(THREAD), "--dry-run", "--json", *at).document
    assert (planned["events"], planned["done"]) == (1 + len(SECRET), False)
    assert peon("redact", "--thread", str(THREAD), *at, input="n\n").code == 1

    done = peon("redact", "--thread", str(THREAD), "--by", "ada", *at, input="y\n")

    assert (done.code, f"Redacted {1 + len(SECRET)} events." in done.out) == (0, True)
    assert "Backups" in done.out
    assert ("VACUUM FULL" in done.out) == (migrated_lasting_url.drivername != "sqlite")
    assert "[redacted]" in stored(migrated_lasting_url)
    with Database.open(url=migrated_lasting_url) as database:
        assert [act.redacted_by for act in database.maintenance.redactions()] == ["ada"]
    assert "Redacted 0 events." in peon("redact", "--thread", str(THREAD), "--yes", *at).out


def test_the_events_of_a_project_are_redacted(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    done = peon("redact", "--project", str(PROJECT), "--yes", "--json", *at).document
    assert (done["events"], done["undecodable"], done["done"]) == (2 + len(SECRET), [], True)
    assert "tide-table" not in stored(migrated_lasting_url)


def test_either_a_thread_or_a_project_must_be_given(peon: Peon, at: tuple[str, str]) -> None:
    assert peon("redact", "--yes", *at).code == 2
    assert peon("redact", "--yes", "--thread", str(UUID(int=1)), "--project", str(UUID(int=1)), *at).code == 2


def test_events_that_cannot_be_decoded_are_reported_and_end_with_1(
    peon: Peon, at: tuple[str, str], migrated_lasting_url: URL
) -> None:
    with Database.open(url=migrated_lasting_url, codec=codec) as database:
        place = database.events.append_all([noted(SECRET, THREAD)])[0].sequence
    done = peon("redact", "--thread", str(THREAD), "--yes", *at)
    assert (done.code, f"1 event cannot be decoded, and is as it was: {place}." in done.out) == (1, True)
