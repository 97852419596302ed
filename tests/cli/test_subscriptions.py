"""`peon subscriptions`."""

from uuid import uuid4

import pytest
from helpers.migrated_databases import address, file_of, thaw
from helpers.peon_command import Peon
from sqlalchemy import URL

from peon import Database, PersistenceError, PositionBeyondEnd
from peon.orchestration import ProjectCreated
from peon.persistence.subscriptions.administration import delete_position, saved_positions, set_position

NAME = "mails [of] Ada"


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    """Returns the options of a database with ten events, and a subscription that has handled four."""
    with Database.open(url=migrated_lasting_url) as database:
        database.events.append_all([ProjectCreated(project_id=uuid4(), name="a", path="/a") for _ in range(10)])
        with database.events.durable_subscription(NAME) as subscription:
            for _ in range(4):
                next(subscription)
            subscription.save_position()
    return "--url", address(migrated_lasting_url)


def position(peon: Peon, at: tuple[str, str]) -> int | None:
    found = peon("subscriptions", "list", "--json", *at).document["subscriptions"]
    return next((each["position"] for each in found if each["name"] == NAME), None)


def test_subscriptions_are_listed(peon: Peon, at: tuple[str, str]) -> None:
    document = peon("subscriptions", "list", "--json", *at).document
    (found,) = document["subscriptions"]
    assert document["last_sequence"] == 10
    assert {key: found[key] for key in ("name", "position", "lag")} == {"name": NAME, "position": 4, "lag": 6}
    assert NAME in peon("subscriptions", "list", *at).out


@pytest.mark.parametrize(
    ("target", "expected", "effect"),
    [("1", 1, "3 events are delivered again"), ("end", 10, "6 events are skipped"), ("0", 0, "4 events are delivered")],
)
def test_a_subscription_is_moved_after_a_warning(
    peon: Peon, at: tuple[str, str], target: str, expected: int, effect: str
) -> None:
    assert effect in peon("subscriptions", "set-position", NAME, target, "--dry-run", *at).out
    refused = peon("subscriptions", "set-position", NAME, target, *at, input="n\n")
    assert effect in refused.err
    assert (refused.code, position(peon, at)) == (1, 4)

    assert peon("subscriptions", "set-position", NAME, target, *at, input="y\n").code == 0
    assert position(peon, at) == expected


def test_the_consumer_continues_at_the_new_position(peon: Peon, at: tuple[str, str]) -> None:
    peon("subscriptions", "set-position", NAME, "7", "--yes", *at)
    with Database.open(url=at[1]) as database, database.events.durable_subscription(NAME) as subscription:
        assert next(subscription).sequence == 8


def test_a_subscription_is_deleted_after_a_warning(peon: Peon, at: tuple[str, str]) -> None:
    assert "4 events again" in peon("subscriptions", "delete", NAME, "--dry-run", *at).out
    assert peon("subscriptions", "delete", NAME, *at, input="n\n").code == 1
    assert position(peon, at) == 4
    assert peon("subscriptions", "delete", NAME, "--yes", *at).code == 0
    assert position(peon, at) is None


def test_an_unknown_name_and_wrong_positions_are_refused(peon: Peon, at: tuple[str, str]) -> None:
    assert peon("subscriptions", "delete", "nobody", "--yes", *at).code == 1
    assert peon("subscriptions", "set-position", "nobody", "1", "--yes", *at).code == 1
    for wrong in ("11", "first", "1.5"):
        assert peon("subscriptions", "set-position", NAME, wrong, "--yes", *at).code == 2
    assert position(peon, at) == 4


def test_an_active_consumer_is_not_moved(peon: Peon, at: tuple[str, str]) -> None:
    with Database.open(url=at[1]) as database, database.events.durable_subscription(NAME) as subscription:
        next(subscription)
        for command in (("set-position", NAME, "0"), ("delete", NAME)):
            done = peon("subscriptions", *command, "--yes", *at)
            assert done.code != 0
            assert "stop it" in done.err
        subscription.save_position()
    assert position(peon, at) == 5


def test_the_functions_refuse_what_the_command_refuses(peon: Peon, at: tuple[str, str]) -> None:
    with Database.open(url=at[1]) as database:
        with pytest.raises(PositionBeyondEnd):
            set_position(database.engine, NAME, 11)
        for change in (
            lambda: set_position(database.engine, "nobody", 1),
            lambda: delete_position(database.engine, "nobody"),
        ):
            with pytest.raises(PersistenceError, match="there is no subscription"):
                change()
        with database.read_transaction() as connection:
            assert [(each.name, each.sequence) for each in saved_positions(connection)] == [(NAME, 4)]


def test_a_position_beyond_the_end_is_reported(peon: Peon, sqlite_url: URL) -> None:
    thaw("005_log_identity", file_of(sqlite_url))
    with Database.open(url=sqlite_url) as database, database.engine.begin() as connection:
        end = database.events.last_sequence()
        connection.exec_driver_sql("DELETE FROM subscription_positions")
        connection.exec_driver_sql(
            "INSERT INTO subscription_positions VALUES ('restored', ?, '2026-01-01T00:00:00.000000Z')", (end + 5,)
        )
    done = peon("subscriptions", "list", "--url", address(sqlite_url))
    assert "5 beyond the end" in done.out
    checks = peon("status", "--check", "--json", "--url", address(sqlite_url)).document["checks"]
    assert [each["found"] for each in checks if each["name"] == "subscription restored" and not each["ok"]] == [
        "5 events beyond the end of the log"
    ]
