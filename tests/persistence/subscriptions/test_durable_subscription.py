"""Durable subscriptions store the effects of an event and the position together, or not at all."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from helpers.processes import exit_codes
from helpers.subscription_processes import CONSUMER, append_names, consume_until
from sqlalchemy import URL, text

from peon.orchestration import ProjectRenamed
from peon.persistence import Database, DurableSubscription, SubscriptionConflict, create_engine


def append(database: Database, count: int) -> None:
    database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name=str(n)) for n in range(count)])


@pytest.fixture
def stored(log_alone: Database) -> Database:
    append(log_alone, 5)
    return log_alone


@pytest.fixture
def mailer(stored: Database) -> Iterator[DurableSubscription[Any]]:
    with stored.events.durable_subscription("mailer") as subscription:
        yield subscription


def position(database: Database, name: str = "mailer") -> int:
    with database.events.durable_subscription(name) as subscription:
        return subscription.position


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_a_subscription_resumes_at_the_saved_position(stored: Database, mailer: DurableSubscription[Any]) -> None:
    assert [next(mailer).sequence for _ in range(3)] == [1, 2, 3]
    mailer.save_position()
    next(mailer)  # not committed

    assert position(stored) == 3
    mailer.close()
    with stored.events.durable_subscription("mailer") as again:
        assert next(again).sequence == 4
    assert position(stored, "another") == 0


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_a_new_name_begins_after_the_given_sequence(stored: Database) -> None:
    with stored.events.durable_subscription("mailer", after=stored.events.last_sequence()) as subscription:
        append(stored, 1)
        assert next(subscription).sequence == 6
    with stored.events.durable_subscription("mailer", after=2) as subscription:  # the name is no longer new
        assert subscription.position == 5


@pytest.mark.postgresql_too("transactions of the consumer")
def test_effects_and_position_share_a_transaction(stored: Database, mailer: DurableSubscription[Any]) -> None:
    next(mailer)
    with stored.engine.connect() as connection:
        stored.settings.set("sent", 1, connection=connection)
        mailer.save_position(connection=connection)
        connection.rollback()
    assert stored.settings.get("sent") is None
    assert position(stored) == 0

    with stored.engine.begin() as connection:  # the same event again
        stored.settings.set("sent", 1, connection=connection)
        mailer.save_position(connection=connection)
    assert stored.settings.get("sent") == 1
    assert position(stored) == 1


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_an_event_whose_effects_were_rolled_back_is_delivered_again(
    stored: Database, mailer: DurableSubscription[Any]
) -> None:
    next(mailer)
    with stored.engine.connect() as connection:
        mailer.save_position(connection=connection)
        connection.rollback()
    next(mailer)
    with pytest.raises(SubscriptionConflict, match="'mailer' is no longer at 1, but at 0") as caught:
        mailer.save_position()
    assert (caught.value.name, caught.value.expected, caught.value.found) == ("mailer", 1, 0)
    assert position(stored) == 0


def lose_place(subscription: DurableSubscription[Any]) -> None:
    """Lets another consumer become active, as after a lost connection to a server."""
    subscription._saved.consumer_lock.release()


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_a_consumer_that_lost_its_place_saves_nothing(stored: Database, mailer: DurableSubscription[Any]) -> None:
    next(mailer)
    lose_place(mailer)
    with stored.events.durable_subscription("mailer") as other:
        next(other)
        other.save_position()
        with pytest.raises(SubscriptionConflict, match="'mailer' is no longer at 0, but at 1"):
            mailer.save_position()
        next(other)
        other.save_position()
    with pytest.raises(SubscriptionConflict, match="'mailer' is no longer at 0, but at 2"):
        next(mailer)
    assert position(stored) == 2


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_a_rolled_back_save_is_not_mistaken_for_the_save_of_another_consumer(
    stored: Database, mailer: DurableSubscription[Any]
) -> None:
    with stored.events.durable_subscription("mailer") as other:
        next(other)
        with stored.engine.connect() as connection:
            other.save_position(connection=connection)
            connection.rollback()
        lose_place(other)
        next(mailer)
        mailer.save_position()
        with pytest.raises(SubscriptionConflict):
            other.save_position()


def test_saving_without_a_new_event_changes_nothing(stored: Database, mailer: DurableSubscription[Any]) -> None:
    mailer.save_position()
    next(mailer)
    for _ in range(3):
        mailer.save_position()
    next(mailer)
    mailer.save_position()
    assert position(stored) == 2


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
def test_a_removed_position_is_a_conflict(stored: Database, mailer: DurableSubscription[Any]) -> None:
    next(mailer)
    with stored.engine.begin() as connection:
        connection.execute(text("DELETE FROM subscription_positions"))
    with pytest.raises(SubscriptionConflict) as caught:
        mailer.save_position()
    assert caught.value.found is None


@pytest.mark.postgresql_too("locks, and transactions of the consumer")
@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_a_name_must_be_printable_text(stored: Database, name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        stored.events.durable_subscription(name)
    with pytest.raises(TypeError):
        stored.events.durable_subscription(1)  # type: ignore[call-overload]


@pytest.mark.parametrize("seed", [1])
def test_effects_happen_exactly_once_when_consumers_are_killed(migrated_lasting_url: URL, seed: int) -> None:
    url = migrated_lasting_url.render_as_string(hide_password=False)
    append_names(url, [str(number) for number in range(40)])
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effects (sequence BIGINT)"))  # no constraint prevents repeated rows
    killed = 0
    for attempt in range(100):
        (code,) = exit_codes(consume_until, [(url, 40, seed * 1_000 + attempt)])
        if code == 0:
            break
        assert code == -9
        killed += 1
    assert killed > 0
    with engine.connect() as connection:
        effects = connection.scalars(text("SELECT sequence FROM effects ORDER BY sequence")).all()
    engine.dispose()
    assert list(effects) == [*range(1, 41)]
    with Database.open(url=url, maintain_projections=False) as database:
        assert position(database, CONSUMER) == 40
