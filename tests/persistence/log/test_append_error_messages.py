"""Errors of appends and reads never show a payload."""

import pytest
from helpers.hard_events import assert_unharmed, renamed
from helpers.secret import SECRET, assert_secret_is_kept
from sqlalchemy import insert, text

from peon.persistence import Database, EventDecodeError, StoreUnavailable
from peon.persistence.schema import events as log


def test_a_row_that_cannot_be_decoded_is_not_quoted(database: Database) -> None:
    payload = renamed(SECRET).model_dump_json().replace("}", f',"path":"{SECRET}"}}')
    before = database.events.append_all([renamed()])
    with database.engine.begin() as connection:
        connection.execute(
            insert(log),
            {"sequence": 2, "event_type": "ProjectRenamed", "payload": payload, "stored_at": "2025-03-14T12:00:00Z"},
        )

    with pytest.raises(EventDecodeError, match=r"event 2 \(ProjectRenamed\)") as caught:
        database.events.replay_all()

    assert_secret_is_kept(caught.value)
    assert list(database.events.stream(limit=1)) == before


def execute(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("url", ["file", "memory"], indirect=True)  # a full disk of a server would fail other tests
def test_an_append_to_a_full_disk_does_not_quote_the_events(database: Database) -> None:
    before = database.events.append_all([renamed()])
    database.events.close()
    with database.engine.connect() as connection:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # affects this connection, the pool's only one

    for batch in ([renamed(SECRET * 1_000)], [renamed(SECRET)] * 2_000):
        with pytest.raises(StoreUnavailable, match="the disk is full: free some space") as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert_unharmed(database, before)


def test_an_append_that_a_constraint_refuses_does_not_quote_the_events(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        rule = (
            "CREATE TRIGGER too_long BEFORE INSERT ON events WHEN length(NEW.payload) > 1000 "
            "BEGIN SELECT RAISE(ABORT, 'too long'); END"
        )
    else:
        rule = "ALTER TABLE events ADD CONSTRAINT too_long CHECK (length(payload) <= 1000)"
    before = database.events.append_all([renamed()])
    execute(database, rule)

    for batch in ([renamed(SECRET * 100)], [renamed(SECRET), renamed(SECRET * 100)]):
        with pytest.raises(StoreUnavailable) as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    assert_unharmed(database, before)


def test_an_append_to_a_dropped_table_does_not_quote_the_events(database: Database) -> None:
    before = database.events.append_all([renamed()])
    execute(database, "ALTER TABLE events RENAME TO away")

    for batch in ([renamed(SECRET)], [renamed(SECRET)] * 500):
        with pytest.raises(StoreUnavailable) as caught:
            database.events.append_all(batch)
        assert_secret_is_kept(caught.value)

    execute(database, "ALTER TABLE away RENAME TO events")
    assert_unharmed(database, before)
