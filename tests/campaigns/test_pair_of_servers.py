"""The primary of two servers is killed, and its standby takes over, again; see docs/explanation/campaigns.md."""

import asyncio
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from helpers import campaigns
from helpers.pair_of_servers import PairOfServers
from helpers.private_postgresql_server import binaries
from sqlalchemy import URL, text

from peon.orchestration import OrchestrationEvent, ProjectCreated
from peon.persistence import Database, StoredEvent, StoreUnavailable, SubscriptionConflict
from peon.persistence.asynchronous import AsyncDatabase

ROUNDS = campaigns.rounds(2)

PATIENCE = 300
"""After this many seconds, a condition that does not hold fails the test."""

APPENDERS = 4
"""The number of threads, and of tasks. Half of them give each append a command identifier."""

EACH = 20
"""The least number of appends that each of them makes between two kills; a random number is added."""

PAUSE_SECONDS = 0.05
"""The wait before a call that found no server is repeated: it leaves the processors to the servers."""

WHAT = f"""\
Two PostgreSQL servers on one machine, the standby synchronous, and an address with both. {APPENDERS} threads and
{APPENDERS} tasks append without a pause; half of them give each append a `command_id` and repeat it until it
succeeds. A thread and a task follow the log with `subscribe`, and a thread and a task each with a durable
subscription whose effects are rows of a table. Each round kills all processes of the primary at once with SIGKILL
while appends are under way, promotes the standby, and replaces the killed server by a new standby, for which the
commits wait. In every second round the standby has received nothing for a while, and a commit of the primary waits
for it. The same objects are used in all rounds. At the end, every acknowledged append is in the log under the
sequence that was returned, none twice, and none that was reported as not stored. The sequences and each subscription
have no gap, each consumer has handled each event once, `verify()` finds no difference, and the standby has the same
log."""


@pytest.fixture
def pair() -> Iterator[PairOfServers]:
    found = binaries()
    if found is None or not (found / "pg_basebackup").exists():
        pytest.skip("no PostgreSQL server is installed here")
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        Path(name).chmod(0o755)
        pair = PairOfServers(found, Path(name))
        yield pair
        pair.stop()


def created(name: str) -> ProjectCreated:
    return ProjectCreated(project_id=uuid4(), name=name, path="/")


class Appender:
    """The outcomes of the appends of one thread or task."""

    def __init__(self, name: str, *, repeats: bool) -> None:
        self.name = name
        self.repeats = repeats
        self.stored: dict[str, int] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()

    def events(self) -> Iterator[tuple[ProjectCreated, UUID | None]]:
        for number in count():
            yield created(f"{self.name}-{number}"), uuid4() if self.repeats else None

    def acknowledge(self, stored: StoredEvent[OrchestrationEvent]) -> None:
        assert isinstance(stored.event, ProjectCreated)
        self.stored[stored.event.name] = stored.sequence

    def fail(self, event: ProjectCreated, error: StoreUnavailable) -> None:
        known = self.unknown if "may have taken place" in str(error) else self.refused
        known.add(event.name)


class Follower:
    """The events that a subscription has given."""

    def __init__(self) -> None:
        self.last = 0

    def see(self, stored: StoredEvent[OrchestrationEvent]) -> None:
        assert stored.sequence == self.last + 1
        self.last = stored.sequence


class Campaign:
    """The threads and tasks, and all that they have seen."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.stop, self.tasks_have_stopped, self.end = threading.Event(), threading.Event(), threading.Event()
        self.threads = [Appender(f"thread {number}", repeats=number % 2 == 0) for number in range(APPENDERS)]
        self.tasks = [Appender(f"task {number}", repeats=number % 2 == 0) for number in range(APPENDERS)]
        self.followers = {"thread": Follower(), "task": Follower()}
        self.handled = dict.fromkeys(["thread", "task"], 0)
        self.failures: Counter[str] = Counter()

    @property
    def appenders(self) -> list[Appender]:
        return [*self.threads, *self.tasks]

    def acknowledged(self) -> int:
        return sum(len(appender.stored) for appender in self.appenders)

    def goal(self, more: int) -> Callable[[], bool]:
        """Returns a condition: each appender has made this many more appends."""
        goals = [len(appender.stored) + more for appender in self.appenders]
        return lambda: all(len(each.stored) >= goal for each, goal in zip(self.appenders, goals, strict=True))

    def have_read(self, last: int) -> bool:
        return all(each.last == last for each in self.followers.values()) and set(self.handled.values()) == {last}

    def append(self, database: Database, appender: Appender) -> None:
        for event, command_id in appender.events():
            while not self.stop.is_set():
                try:
                    (stored,) = database.events.append_all([event], command_id=command_id)
                except StoreUnavailable as error:
                    if command_id is None:
                        appender.fail(event, error)
                        break
                    self.failures["repeated commands"] += 1
                    self.stop.wait(PAUSE_SECONDS)
                else:
                    appender.acknowledge(stored)
                    break
            if self.stop.is_set():
                return

    def follow(self, database: Database) -> None:
        with database.events.subscribe(stop=self.end) as subscription:
            while not self.end.is_set():
                try:
                    for stored in subscription:
                        self.followers["thread"].see(stored)
                except StoreUnavailable:
                    self.end.wait(PAUSE_SECONDS)

    def handle(self, database: Database) -> None:
        while not self.end.is_set():
            try:
                with database.events.durable_subscription("thread", stop=self.end) as subscription:
                    for stored in subscription:
                        with database.engine.begin() as connection:
                            connection.execute(EFFECT, {"consumer": "thread", "sequence": stored.sequence})
                            subscription.save_position(connection=connection)
                        self.handled["thread"] = stored.sequence
            except (StoreUnavailable, SubscriptionConflict, sqlalchemy.exc.DBAPIError):
                self.end.wait(PAUSE_SECONDS)

    async def run_tasks(self) -> None:
        async with await AsyncDatabase.open(url=self.url) as database, asyncio.TaskGroup() as group:
            group.create_task(self.follow_in_task(database))
            group.create_task(self.handle_in_task(database))
            await asyncio.gather(*(self.append_in_task(database, appender) for appender in self.tasks))
            self.tasks_have_stopped.set()

    async def append_in_task(self, database: AsyncDatabase[Any], appender: Appender) -> None:
        for event, command_id in appender.events():
            while not self.stop.is_set():
                try:
                    (stored,) = await database.events.append_all([event], command_id=command_id)
                except StoreUnavailable as error:
                    if command_id is None:
                        appender.fail(event, error)
                        break
                    self.failures["repeated commands"] += 1
                    await asyncio.sleep(PAUSE_SECONDS)
                else:
                    appender.acknowledge(stored)
                    break
            if self.stop.is_set():
                return

    async def follow_in_task(self, database: AsyncDatabase[Any]) -> None:
        async with database.events.subscribe(stop=self.end) as subscription:
            while not self.end.is_set():
                try:
                    async for stored in subscription:
                        self.followers["task"].see(stored)
                except StoreUnavailable:
                    await asyncio.sleep(PAUSE_SECONDS)

    async def handle_in_task(self, database: AsyncDatabase[Any]) -> None:
        while not self.end.is_set():
            try:
                async with database.events.durable_subscription("task", stop=self.end) as subscription:
                    async for stored in subscription:
                        async with database.engine.begin() as connection:
                            await connection.execute(EFFECT, {"consumer": "task", "sequence": stored.sequence})
                            await subscription.save_position(connection=connection)
                        self.handled["task"] = stored.sequence
            except (StoreUnavailable, SubscriptionConflict, sqlalchemy.exc.DBAPIError):
                await asyncio.sleep(PAUSE_SECONDS)

    def check(self, standby: URL) -> int:
        """Compares what was seen with the log, and returns the length of the log."""
        with Database.open(url=self.url) as database:
            log = database.events.replay_all()
            assert database.projections.verify() == []
            assert database.maintenance.lost_events() == []
            with database.engine.connect() as connection:
                effects = {name: list(connection.scalars(EFFECTS, {"consumer": name})) for name in self.handled}
                rows = connection.execute(ROWS).all()
        names = {stored.event.name: stored.sequence for stored in log if isinstance(stored.event, ProjectCreated)}
        assert len(names) == len(log), "an event was stored twice"
        sequences = list(range(1, len(log) + 1))
        assert [stored.sequence for stored in log] == sequences
        for appender in self.appenders:
            assert appender.stored.items() <= names.items(), "an acknowledged event was lost"
            assert not appender.refused & names.keys(), "an event was stored that was reported as not stored"
        assert effects == dict.fromkeys(self.handled, sequences), "an event was handled twice, or not at all"
        engine = sqlalchemy.create_engine(standby)
        with engine.connect() as connection:
            assert connection.execute(ROWS).all() == rows, "the standby has another log"
        engine.dispose()
        return len(log)


EFFECT = text("INSERT INTO effects (consumer, sequence) VALUES (:consumer, :sequence)")
EFFECTS = text("SELECT sequence FROM effects WHERE consumer = :consumer ORDER BY sequence")
ROWS = text("SELECT sequence, event_type, payload, stored_at FROM events ORDER BY sequence")


def wait_until(condition: Callable[[], bool], work: list[Any]) -> None:
    """Returns when the condition holds. Fails at once if a thread has failed."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for ended in work:
            if ended.done():
                ended.result()
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def lose_a_commit(pair: PairOfServers, campaign: Campaign, work: list[Any]) -> None:
    """Returns when the primary has written a commit that the standby never gets. It must not be acknowledged."""
    pair.cut_replication()
    # Answers that are still under way do not count.
    several = campaign.acknowledged() + 2 * len(campaign.appenders)
    wait_until(lambda: pair.has_waiting_commits() or campaign.acknowledged() > several, work)


@pytest.mark.slow
@pytest.mark.timeout(campaigns.PATIENCE)
def test_a_promoted_standby_has_every_acknowledged_event(pair: PairOfServers) -> None:
    chance = Random(ROUNDS)
    campaign = Campaign(pair.url)
    outages = []
    with Database.open(url=pair.url) as database, ThreadPoolExecutor(APPENDERS + 3) as pool:
        with database.engine.begin() as connection:
            # Without a key, so that an effect that happened twice is there twice.
            connection.execute(text("CREATE TABLE effects (consumer TEXT NOT NULL, sequence BIGINT NOT NULL)"))
        work = [
            *(pool.submit(campaign.append, database, appender) for appender in campaign.threads),
            pool.submit(campaign.follow, database),
            pool.submit(campaign.handle, database),
            pool.submit(asyncio.run, campaign.run_tasks()),
        ]
        try:
            for number in range(ROUNDS):
                wait_until(campaign.goal(EACH + chance.randrange(EACH)), work)
                if number % 2:
                    lose_a_commit(pair, campaign, work)
                killed = time.monotonic()
                pair.fail_over()
                before = campaign.acknowledged()
                pair.add_standby()
                wait_until(lambda seen=before: campaign.acknowledged() > seen, work)
                outages.append(time.monotonic() - killed)
            wait_until(campaign.goal(EACH), work)
            campaign.stop.set()
            for appending in work[:APPENDERS]:
                appending.result(PATIENCE)
            wait_until(campaign.tasks_have_stopped.is_set, work[APPENDERS:])
            last = database.events.last_sequence()
            wait_until(lambda: campaign.have_read(last), work[APPENDERS:])
        finally:
            campaign.stop.set()
            campaign.end.set()
        for ended in work:
            ended.result(PATIENCE)
    pair.wait_until_equal()
    events = campaign.check(pair.standby)
    record(campaign, events, outages)


def record(campaign: Campaign, events: int, outages: list[float]) -> None:
    engine = sqlalchemy.create_engine(campaign.url)
    with engine.connect() as connection:
        version = str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]
    engine.dispose()
    figures: dict[str, str | int] = {
        "Primary servers killed and replaced by their standby": len(outages),
        "Events in the log at the end": events,
        "Acknowledged appends": campaign.acknowledged(),
        "Failed calls that were repeated with the same command": campaign.failures["repeated commands"],
        "Appends without a command that were reported as not stored": sum(len(a.refused) for a in campaign.appenders),
        "Appends without a command whose outcome was unknown": sum(len(a.unknown) for a in campaign.appenders),
        "Acknowledged events lost": 0,
        "Events stored twice": 0,
        "Gaps in the four subscriptions": 0,
        "Longest time from a kill to the next acknowledged append, with the new standby": f"{max(outages):.1f} s",
        "Server": f"PostgreSQL {version}",
    }
    campaigns.record("pair_of_servers", "A pair of PostgreSQL servers", WHAT, len(outages), figures)
