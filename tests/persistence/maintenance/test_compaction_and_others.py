"""What others may do while a compaction runs, and after it was killed."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from helpers.processes import exit_codes
from helpers.streamed_text import (
    NO_AGE,
    OTHER_MESSAGE,
    OTHER_TURN,
    SCENE,
    be_killed_while_compacting,
    deltas,
    whole,
)
from sqlalchemy import URL, event
from sqlalchemy.exc import DBAPIError

from peon.persistence import Database
from peon.persistence.log import pages

pytestmark = pytest.mark.postgresql_too("locks, and the trigger that forbids changes of the log")

CHANGES = ["DELETE FROM events WHERE sequence = 1", "UPDATE events SET payload = '' WHERE sequence = 7"]


def refused(url: URL, change: str) -> str:
    """Returns why another program cannot change the log."""
    if url.drivername == "sqlite":
        with closing(sqlite3.connect(str(url.database), timeout=0)) as connection:
            with pytest.raises(sqlite3.Error) as caught:
                connection.execute(change)
            return str(caught.value)
    engine = sqlalchemy.create_engine(url)
    with pytest.raises(DBAPIError) as failed, engine.begin() as other:
        # A temporary table that hides the real one does not permit the change.
        other.exec_driver_sql("CREATE TEMPORARY TABLE compaction (number integer)")
        other.exec_driver_sql("INSERT INTO compaction VALUES (1)")
        other.exec_driver_sql(change)
    engine.dispose()
    return str(failed.value)


def when_deleting(database: Database, act: Callable[[], object]) -> None:
    @event.listens_for(database.engine, "after_cursor_execute")
    def listen(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE FROM events"):
            act()


def test_the_log_stays_append_only_for_others(migrated_lasting_url: URL) -> None:
    reasons: list[str] = []
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*SCENE, *whole("ebb")])
        when_deleting(database, lambda: reasons.extend(refused(migrated_lasting_url, change) for change in CHANGES))

        assert database.maintenance.compact(older_than=NO_AGE).removed == 2

        locked = migrated_lasting_url.drivername == "sqlite"
        assert ["database is locked" in reason if locked else "append-only" in reason for reason in reasons] == [
            True
        ] * 2
        for change in CHANGES:
            assert "append-only" in refused(migrated_lasting_url, change)
            with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as own:
                own.exec_driver_sql(change)


def test_a_step_that_was_written_before_opens_the_way_for_no_other_transaction(migrated_postgresql_url: URL) -> None:
    with Database.open(url=migrated_postgresql_url) as database:
        database.events.append_all([*SCENE, *whole("ebb")])
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE compaction SET steps = steps + 1")
        for change in [*CHANGES, "TRUNCATE events"]:
            with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
                connection.exec_driver_sql(change)
        with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE compaction SET steps = steps + 1")
            connection.exec_driver_sql("TRUNCATE events")


def test_a_killed_compaction_leaves_the_log_as_it_was(migrated_lasting_url: URL) -> None:
    address = migrated_lasting_url.render_as_string(hide_password=False)
    with Database.open(url=migrated_lasting_url) as database:
        stored = database.events.append_all([*SCENE, *whole("ebb")])

    assert exit_codes(be_killed_while_compacting, [(address,)]) == [-9]

    for change in CHANGES:
        assert "append-only" in refused(migrated_lasting_url, change)
    with Database.open(url=migrated_lasting_url) as database:
        assert database.events.replay_all() == stored
        assert database.maintenance.removed_events() == []
        assert database.maintenance.compact(older_than=NO_AGE).removed == 2
        assert database.projections.verify() == []


def test_a_rebuild_that_reads_a_message_while_it_is_merged_begins_again(
    migrated_lasting_url: URL, small_pages: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Database.open(url=migrated_lasting_url) as database, Database.open(url=migrated_lasting_url) as other:
        database.events.append_all([*SCENE, *whole("ebb and flow" * 3), *whole("!", OTHER_TURN, OTHER_MESSAGE)])
        done: list[int] = []

        def compact_once(reached: int, _: int) -> None:
            if reached > 12 and not done:
                done.append(other.maintenance.compact(older_than=NO_AGE).removed)

        with caplog.at_level("INFO", "peon"):
            database.projections.rebuild(compact_once)

        assert done == [35]
        assert "a compaction or a redaction has changed the log meanwhile" in caplog.text
        assert database.projections.verify() == []


def test_a_reader_between_two_pages_is_given_the_rest_within_the_whole(
    migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_EVENTS", 6)
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([*SCENE, *whole("ebb")])
        stream = database.events.stream()
        read = [next(stream) for _ in range(6)]
        database.maintenance.compact(older_than=NO_AGE)

        assert [stored.sequence for stored in [*read, *stream]] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert deltas(database) == {7: "ebb"}


def test_no_step_is_left_half_done_when_a_statement_fails(migrated_sqlite_url: URL) -> None:
    with Database.open(url=migrated_sqlite_url) as database:
        stored = database.events.append_all([*SCENE, *whole("ebb")])

        def fail() -> None:
            raise KeyboardInterrupt

        when_deleting(database, fail)
        with pytest.raises(KeyboardInterrupt):
            database.maintenance.compact(older_than=NO_AGE)

        assert "append-only" in refused(migrated_sqlite_url, CHANGES[0])
        assert database.events.replay_all() == stored
        assert Path(str(migrated_sqlite_url.database)).exists()
