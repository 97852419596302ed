"""`peon events`."""

import json
import signal
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.peon_command import Done, Peon
from sqlalchemy import URL, insert, text

from peon import Database
from peon.orchestration import ProjectCreated, ProjectRenamed, ThreadCreated
from peon.persistence import schema

PROJECT = uuid4()
THREAD = uuid4()


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all(
            [
                ProjectCreated(project_id=PROJECT, name="first", path="/p"),
                ProjectCreated(project_id=uuid4(), name="second", path="/q"),
                ThreadCreated(
                    thread_id=THREAD, project_id=PROJECT, provider="codex", model="m", runtime_mode="full_access"
                ),
                *(ProjectRenamed(project_id=PROJECT, name=f"name {number}") for number in range(3)),
            ]
        )
    return "--url", address(migrated_lasting_url)


def lines(done: Done) -> list[Any]:
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


def sequences(done: Done) -> list[int]:
    return [each["sequence"] for each in lines(done)]


def test_each_event_is_a_line_with_its_whole_payload(peon: Peon, at: tuple[str, str]) -> None:
    found = lines(peon("events", "--json", *at))
    assert [each["sequence"] for each in found] == [1, 2, 3, 4, 5, 6]
    assert found[3]["event_type"] == found[3]["payload"]["type"] == "ProjectRenamed"
    assert found[3]["payload"]["name"] == "name 0"
    assert found[3]["text"] is None
    assert found[3]["stored_at"].endswith("Z")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--type", "ThreadCreated"], [3]),
        (["--type", "ThreadCreated", "--type", "ProjectRenamed"], [3, 4, 5, 6]),
        (["--project", str(PROJECT)], [1, 3, 4, 5, 6]),
        (["--thread", str(THREAD)], [3]),
        (["--turn", str(uuid4())], []),
        (["--tag", f"project_id={PROJECT}", "--type", "ProjectCreated"], [1]),
        (["--tag", "model=m"], [3]),
        (["--tag", "name=name 1"], [5]),
        (["--from", "3", "--to", "4"], [3, 4]),
        (["--from", "99"], []),
        (["--to", "0"], []),
        (["-r"], [6, 5, 4, 3, 2, 1]),
        (["-r", "-n", "2", "--to", "5"], [5, 4]),
        (["-r", "--from", "5"], [6, 5]),
        (["--limit", "2"], [1, 2]),
        (["--limit", "0"], []),
        (["-r", "--type", "ProjectRenamed", "-n", "1"], [6]),
        (["--since", "2020-01-01"], [1, 2, 3, 4, 5, 6]),
        (["--since", "2999-01-01T00:00:00Z"], []),
        (["--until", "2020-01-01"], []),
        (["--until", "2999-01-01"], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_filters_select_events(peon: Peon, at: tuple[str, str], options: list[str], expected: list[int]) -> None:
    assert sequences(peon("events", "--json", *options, *at)) == expected


def test_since_and_until_find_times_in_a_log_with_gaps(peon: Peon, migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        for sequence in (*range(1, 20), *range(40, 60)):  # some were removed by hand
            stored_at = f"2026-01-{1 + sequence // 3:02}T00:00:00.000000Z"
            row = {"sequence": sequence, "event_type": "A", "payload": "{}", "stored_at": stored_at}
            connection.execute(insert(schema.events).values(row))
    at = ("--url", address(migrated_sqlite_url), "--json")
    everything = lines(peon("events", *at))
    for day in range(1, 22):
        moment = f"2026-01-{day:02}T00:00:00"
        later = [each["sequence"] for each in everything if each["stored_at"] >= f"{moment}Z"]
        assert sequences(peon("events", "--since", moment, *at)) == later
        earlier = [each["sequence"] for each in everything if each["stored_at"] < f"{moment}Z"]
        assert sequences(peon("events", "--until", f"{moment}+00:00", *at)) == earlier


def test_people_are_shown_short_payloads(peon: Peon, at: tuple[str, str]) -> None:
    with Database.open(url=at[1]) as database:
        database.events.append_all([ProjectRenamed(project_id=PROJECT, name="long\x1b " * 100)])
    short, full = peon("events", *at).out, peon("events", "--full", *at).out
    assert "\x1b" not in short + full
    assert '{"name": "name 0", "project_id"' in short
    assert '"type":"ProjectRenamed"' in full
    assert "…" in short
    assert "…" not in full
    assert len(short.splitlines()) == len(full.splitlines()) == 7


def test_events_that_cannot_be_decoded_are_shown(peon: Peon, migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as connection:
        rows = [("MyOwnEvent", '{"type":"MyOwnEvent","a":1}', "2026-01-01T00:00:00.000000Z"), ("Broken", "{", "never")]
        for event_type, payload, stored_at in rows:
            values = {"event_type": event_type, "payload": payload, "stored_at": stored_at}
            connection.execute(insert(schema.events).values(values))
    own, broken = lines(peon("events", "--json", "--url", address(migrated_lasting_url)))
    assert (own["payload"], own["text"]) == ({"type": "MyOwnEvent", "a": 1}, None)
    assert (broken["payload"], broken["text"], broken["stored_at"]) == (None, "{", None)
    assert "Broken" in peon("events", "--url", address(migrated_lasting_url)).out


def test_a_tag_may_be_one_of_a_list(peon: Peon, migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database, database.engine.begin() as connection:
        for payload in ('{"labels":["a","b"]}', '{"labels":"b"}', '{"labels":["a"]}'):
            row = {"event_type": "Own", "payload": payload, "stored_at": "2026-01-01T00:00:00.000000Z"}
            connection.execute(insert(schema.events).values(row))
    done = peon("events", "--tag", "labels=b", "--json", "--url", address(migrated_lasting_url))
    assert sequences(done) == [1, 2]


def test_rows_that_peon_would_never_write_are_shown(peon: Peon, migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database, database.engine.begin() as connection:
        connection.execute(text("INSERT INTO events VALUES (1, X'ff00', X'fe', 7), (2, 'a', '\"\\ud800\"', 'x')"))
    assert sequences(peon("events", "--json", "--url", address(migrated_sqlite_url))) == [1, 2]
    assert peon("events", "--full", "--url", address(migrated_sqlite_url)).code == 0


@pytest.mark.parametrize("revision", ["001_initial", "003_projections"])
def test_an_old_revision_is_read_with_filters(peon: Peon, sqlite_url: URL, revision: str) -> None:
    path = thaw(revision, file_of(sqlite_url))
    before = path.read_bytes()
    at = ("--url", address(sqlite_url), "--json")
    found = lines(peon("events", *at))
    wanted = found[-1]["event_type"]
    expected = [each["sequence"] for each in found if each["event_type"] == wanted]
    assert sequences(peon("events", "--type", wanted, *at)) == expected
    assert sequences(peon("events", "--type", wanted, "-r", *at)) == expected[::-1]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--tag", "name"],
        ["--tag", "=x"],
        ["--tag", "a=1", "--tag", "a=2"],
        ["--since", "yesterday"],
        ["--thread", "x"],
        ["--from", "0"],
        ["--follow", "-r"],
        ["--follow", "--to", "3"],
    ],
)
def test_options_with_wrong_values_are_wrong_usage(peon: Peon, at: tuple[str, str], options: list[str]) -> None:
    assert peon("events", *options, *at).code == 2


@pytest.mark.parametrize("options", [(), ("--type", "ProjectRenamed")])
def test_following_shows_the_last_events_and_then_new_ones(at: tuple[str, str], options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "peon", "events", "--follow", "-n", "2", "--json", *options, *at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = [json.loads(process.stdout.readline())["sequence"] for _ in range(2)]
        with Database.open(url=at[1]) as database:
            database.events.append_all([ProjectRenamed(project_id=PROJECT, name="new")])
        printed.append(json.loads(process.stdout.readline())["sequence"])
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert printed == [5, 6, 7]
    assert (process.returncode, rest, errors) == (0, "", "")


def test_an_empty_result_is_explained_to_people(peon: Peon, at: tuple[str, str], migrated_lasting_url: URL) -> None:
    done = peon("events", "--type", "NoSuchType", *at)
    assert (done.code, done.out, done.err) == (0, "", "peon: no event matches\n")


def test_an_empty_log_is_explained_to_people(peon: Peon, migrated_lasting_url: URL) -> None:
    done = peon("events", "--url", address(migrated_lasting_url))
    assert (done.code, done.out, done.err) == (0, "", "peon: the log is empty\n")
