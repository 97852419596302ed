"""`peon compact` and `peon vacuum`."""

from datetime import timedelta

import pytest
import typer
from helpers.migrated_databases import address
from helpers.peon_command import Peon
from helpers.streamed_text import SCENE, THREAD, deltas, whole
from sqlalchemy import URL

from peon import Database
from peon.cli.maintenance import period
from peon.orchestration import ThreadDeleted

ended_thread = ThreadDeleted(thread_id=THREAD)


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*SCENE, *whole("ebb" * 100)])
        database.events.durable_subscription("mail", after=database.events.last_sequence()).close()
    return "--url", address(migrated_lasting_url)


def test_compact_merges_chunks_after_a_question(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    assert "No finished turn has chunks that are older than 7d" in peon("compact", "--yes", *at).out
    planned = peon("compact", "--older-than", "0d", "--dry-run", "--json", *at).document
    assert (planned["removed"], planned["messages"], planned["done"]) == (299, 1, False)
    assert peon("compact", "--older-than", "0d", *at, input="n\n").code == 1

    done = peon("compact", "--older-than", "0d", "--yes", *at)

    assert (done.code, "Removed 299 events; the text is in 1 event." in done.out) == (0, True)
    with Database.open(url=migrated_lasting_url) as database:
        assert list(deltas(database).values()) == ["ebb" * 100]
        database.events.append_all([ended_thread])
    assert peon("status", "--json", *at).document["log"]["events"] == planned["until"] - 299 + 1
    checks = peon("doctor", "--json", *at).document["checks"]
    assert next(each["outcome"] for each in checks if each["check"] == "sequences") == "ok"
    assert "subscription mail at" in peon("compact", "--older-than", "0s", "--yes", *at).out


def test_vacuum_says_how_large_the_database_was_and_is(peon: Peon, at: tuple[str, str]) -> None:
    peon("compact", "--older-than", "0d", "--yes", *at)
    assert "bytes; this needs up to" in peon("vacuum", "--dry-run", *at).out

    assert peon("vacuum", *at).code == 0
    done = peon("vacuum", "--full", "--yes", *at)

    assert (done.code, "bytes, and has" in done.out) == (0, True)
    assert "It needs up to" in done.err
    assert peon("vacuum", "--json", *at).document["done"]


@pytest.mark.parametrize(
    ("text", "expected"), [("7d", timedelta(7)), ("90m", timedelta(0, 5400)), ("0w", timedelta(0))]
)
def test_a_period_has_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert period(text) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 d", "9999999d"])
def test_a_text_that_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a period"):
        period(text)
