"""Processes are killed at random moments, whatever they do; see docs/explanation/campaigns.md."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
import sqlalchemy
from helpers import campaigns
from helpers.campaign_redactions import found_in_files
from helpers.campaign_workload import (
    CONSUMER,
    WRITERS,
    Attempt,
    Shortcomings,
    attempts,
    check,
    check_sound,
    consume_all,
    create_effects,
    numbers,
    scene,
    shortcomings,
    with_marker,
)
from helpers.kill_processes import (
    BEGUN,
    DONE,
    OPERATIONS,
    WRITES,
    acknowledged_redactions,
    consume,
    migrated_databases,
    operate,
    reporting_failure,
    write,
)
from helpers.migrated_databases import FROZEN, address, file_of, thaw
from helpers.postgresql_schemas import in_schema
from helpers.processes import PATIENCE, context
from sqlalchemy import URL, text

from peon.orchestration import MessageChunkReceived, OrchestrationEvent
from peon.persistence import Database, create_engine
from peon.persistence.operations.backups import restore_database

ROUNDS = campaigns.rounds(1)
REDACTION_THAT_WRITES = "redaction that writes"
"""A kill after the redaction has read the log, which takes most of its time."""

KINDS = [
    *OPERATIONS,
    *OPERATIONS,
    *["writer", "consumer", "all", REDACTION_THAT_WRITES] * 2,
]
"""What is killed in a round, in a random order."""

CONSUMERS = 2
LONGEST_WAIT_SECONDS = 0.25
"""The longest time before a kill: long enough for a few operations. The checks do not depend on it."""
LONGEST_WRITE_SECONDS = 1.5
"""The longest time before the kill of a redaction that writes, which has to wait for the writers."""

REVISIONS = [file.stem for file in sorted(FROZEN.glob("*.db"))[:6]]
"""The databases of later revisions have gaps beyond the end of their log, which no campaign would leave."""

_STORY = f"""\
Then {WRITERS} processes append streamed messages in batches of random sizes. {CONSUMERS} processes wait for one durable
subscription, whose effects are rows of a table. Another process repeats one operation, and sometimes a second process
another one: {", ".join(OPERATIONS)}. Processes are killed with SIGKILL at random moments, one by one or all at once,
and replaced. A new writer repeats the command whose answer was lost, and closes the turns that were left open.

At the end of a round, every acknowledged event is in the log, or is recorded as merged and has its text in the merged
event, or is recorded as redacted and has kept all but its content. No batch is there in part or twice, and each gap is
recorded. A redaction has replaced the content of all its events and is recorded, or it has changed nothing. The
consumer has handled each event once, and was told each text once, unless it was redacted before. `verify()` and
`peon doctor`, with SQLite's `integrity_check`, find nothing that was not there at the beginning."""
WHAT = {
    "file": f"""\
Each round begins with a database of a random earlier revision, and the processes that migrate it are killed first.
{_STORY} When a redaction says that nothing remains, the files of the database have nothing of its text. Each backup can
be restored, and each migration was finished by the next start.""",
    "postgresql": f"""\
Each round begins with an empty schema, and the processes that migrate it are killed first. {_STORY} The last backup of
a round is restored, and each migration of another empty schema was finished by the next start.""",
}

KILLS, LOST = "Kills", "Events lost or doubled"
"""The names of figures that are not counted."""

Log = dict[int, OrchestrationEvent]


@dataclass(eq=False)
class Running:
    kind: str
    number: int
    process: BaseProcess
    report: Pipe
    said: str = ""


class Campaign:
    """One database, and the processes that use it."""

    def __init__(self, url: URL, folder: Path, chance: Random, counts: Counter[str]) -> None:
        self.url = url
        self.folder = folder
        self.chance = chance
        self.counts = counts
        self.last_writer = -1
        self.last_operation = 0
        self.running: list[Running] = []

    def start(self, kind: str, number: int, main: Callable[..., None], *arguments: object) -> Running:
        receiver, sender = context.Pipe(duplex=False)
        args = (main, str(self.folder), address(self.url), *arguments, sender)
        process = context.Process(target=reporting_failure, args=args)
        process.start()
        sender.close()
        started = Running(kind, number, process, receiver)
        self.running.append(started)
        return started

    def start_writer(self, number: int) -> None:
        self.start("writer", number, write, number)

    def start_consumer(self) -> None:
        self.start("consumer", 0, consume)

    def start_operation(self, operation: str) -> Running:
        self.last_operation += 1
        return self.start(operation, 0, operate, operation, f"step_{self.last_operation}")

    def wait_for(self, process: Running, report: str) -> None:
        while process.said != report:
            assert process.report.poll(PATIENCE), self.failures()
            try:
                process.said = process.report.recv()
            except EOFError:
                raise AssertionError(self.failures()) from None

    def kill(self, victim: Running) -> None:
        victim.process.kill()
        victim.process.join(PATIENCE)
        assert victim.process.exitcode == -signal.SIGKILL, self.failures()
        self.running.remove(victim)
        last = victim.said
        try:
            while True:
                last = victim.report.recv()
        except EOFError:
            victim.report.close()
        self.counts[f"kills: {victim.kind}"] += 1
        self.counts["kills within an operation"] += victim.kind in OPERATIONS and last != DONE
        self.counts["kills of a redaction that writes"] += last == WRITES

    def replace(self, victim: Running) -> None:
        if victim.kind == "writer":
            self.start_writer(victim.number + WRITERS)
        elif victim.kind == "consumer":
            self.start_consumer()

    def kill_one(self, kind: str) -> None:
        if kind == REDACTION_THAT_WRITES:
            victim = self.start_operation("redaction")
            self.wait_for(victim, WRITES)
        elif kind in OPERATIONS:
            victim = self.start_operation(kind)
            self.wait_for(victim, BEGUN)
        else:
            victim = self.chance.choice([each for each in self.running if each.kind == kind])
        longest = LONGEST_WRITE_SECONDS if kind == REDACTION_THAT_WRITES else LONGEST_WAIT_SECONDS
        time.sleep(self.chance.uniform(0, longest))
        self.kill(victim)
        self.replace(victim)

    def kill_all(self) -> None:
        operations = [self.start_operation(each) for each in self.chance.sample(list(OPERATIONS), 2)]
        for each in operations:
            self.wait_for(each, BEGUN)
        time.sleep(self.chance.uniform(0, LONGEST_WAIT_SECONDS))
        killed = list(self.running)
        for each in killed:
            each.process.kill()
        for each in killed:
            self.kill(each)
        self.counts["all at once"] += 1
        for each in killed:
            self.replace(each)

    def failures(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("*.failure"))

    def end(self) -> None:
        for each in list(self.running):
            self.kill(each)
        assert self.failures() == ""
        if self.url.get_backend_name() != "sqlite":
            wait_for_orphans(self.url)

    def notes(self) -> list[Attempt]:
        return [attempt for file in sorted(self.folder.glob("*.notes")) for attempt in attempts(file)]


def log_of(database: Database) -> Log:
    return {stored.sequence: stored.event for stored in database.events.stream()}


@contextmanager
def new_schema(server: URL) -> Iterator[URL]:
    schema = f"test_{uuid4().hex}"
    engine = sqlalchemy.create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        yield in_schema(server, schema).update_query_dict({"application_name": schema})
    finally:
        with engine.begin() as connection:
            find = text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :name)")
            for name in connection.scalars(find, {"name": schema}).all():
                connection.execute(text(f'DROP SCHEMA "{name}" CASCADE'))
        engine.dispose()


def wait_for_orphans(url: URL) -> None:
    """Waits until the server has noticed that its clients were killed: it first ends the statement that it executes."""
    query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND pid <> pg_backend_pid()")
    engine = sqlalchemy.create_engine(url)
    deadline = time.monotonic() + PATIENCE
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(query, {"name": url.query["application_name"]}):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    engine.dispose()


def begin(campaign: Campaign, revision: str | None) -> tuple[set[int], Shortcomings]:
    """Kills the first processes while they migrate the database; returns its removed events and shortcomings."""
    if revision:
        thaw(revision, file_of(campaign.url))
    for victim in [campaign.start("migration", 0, operate, "vacuum", "first") for _ in range(2)]:
        time.sleep(campaign.chance.uniform(0, LONGEST_WAIT_SECONDS))
        campaign.kill(victim)
    with Database.open(url=campaign.url) as database:
        create_effects(database)
        database.events.append_all(scene())
        # From here on, a compaction leaves what the consumer has not read.
        database.events.durable_subscription(CONSUMER).close()
        with database.engine.begin() as connection:  # other consumers, which would never continue
            connection.execute(text("DELETE FROM subscription_positions WHERE name <> :name"), {"name": CONSUMER})
        return set(numbers(database.maintenance.removed_events())), shortcomings(database)


def check_backups(campaign: Campaign, log: Log, last: Path) -> int:
    """Restores backups, and compares them with the log; what was merged or redacted since may differ."""
    if campaign.url.get_backend_name() != "sqlite":
        engine = create_engine(campaign.url)
        restore_database(engine, last, replace=True)
        with Database.open(url=campaign.url) as database:
            assert log_of(database) == log
        engine.dispose()
        return 1
    files = list(campaign.folder.glob("*.copy"))
    for file in files:
        check_sound(file)
        engine = create_engine(URL.create("sqlite", database=f"{file}.restored"))
        restore_database(engine, file)
        with Database(engine) as database:
            assert database.maintenance.lost_events() == []
            for sequence, event in log_of(database).items():
                is_chunk = isinstance(event, MessageChunkReceived)
                assert is_chunk or log.get(sequence) in (event, with_marker(event))
    return len(files)


def check_migrations(campaign: Campaign) -> int:
    addresses = list(migrated_databases(campaign.url, campaign.folder))
    for each in addresses:
        with Database.open(url=each) as database:
            assert database.maintenance.lost_events() == []
    return len(addresses)


def perform_round(url: URL, folder: Path, seed: int, counts: Counter[str]) -> None:
    chance = Random(seed)
    campaign = Campaign(url, folder, chance, counts)
    is_file = url.get_backend_name() == "sqlite"
    revision = chance.choice(REVISIONS) if is_file else None
    with ExitStack() as stack:
        stack.callback(lambda: [each.process.kill() for each in campaign.running])
        removed_before, before = begin(campaign, revision)
        for writer in range(WRITERS):
            campaign.start_writer(writer)
        for _ in range(CONSUMERS):
            campaign.start_consumer()
        for kind in chance.sample(KINDS, len(KINDS)):
            if kind == "all":
                campaign.kill_all()
            else:
                campaign.kill_one(kind)
        campaign.end()
    with Database.open(url=url) as database:
        consume_all(database)
        for name, operation in OPERATIONS.items():
            operation(database, folder, f"last_{name.replace(' ', '_')}")
        redactions = acknowledged_redactions(folder)
        found = check(database, campaign.notes(), removed_before, redactions=redactions, before=before)
        log = log_of(database)
    if is_file:
        assert found_in_files(file_of(url), found.erased) == set(), "the files have content that was redacted"
    counts["acknowledged events"] += found.acknowledged
    counts["events merged into others"] += found.merged
    counts["redactions"] += found.redactions
    counts["events redacted"] += found.redacted
    counts["effects of the consumer"] += found.effects
    counts["backups checked"] += check_backups(campaign, log, folder / "last_backup.copy")
    counts["migrations checked"] += check_migrations(campaign)


@pytest.mark.slow
@pytest.mark.timeout(campaigns.PATIENCE)
@pytest.mark.parametrize("backend", ["file", "postgresql"])
def test_killed_processes_lose_and_double_nothing(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    before, counts = campaigns.so_far(f"kills_{backend}", WHAT[backend])
    for name in (KILLS, LOST):
        del counts[name]
    for seed in range(before, before + ROUNDS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if backend == "file":
            perform_round(URL.create("sqlite", database=str(folder / "peon.db")), folder, seed, counts)
        else:
            with new_schema(request.getfixturevalue("postgresql_server")) as url:
                perform_round(url, folder, seed, counts)
        shutil.rmtree(folder)
        record(backend, seed + 1, counts)
    assert kills(counts) >= ROUNDS * len(KINDS)
    assert all(counts[f"kills: {kind}"] for kind in [*OPERATIONS, "writer", "consumer"])


def kills(counts: Counter[str]) -> int:
    return sum(number for name, number in counts.items() if name.startswith("kills: "))


def record(backend: str, rounds: int, counts: Counter[str]) -> None:
    campaigns.record(
        f"kills_{backend}",
        f"Kills on {'SQLite' if backend == 'file' else 'PostgreSQL'}",
        WHAT[backend],
        rounds,
        {KILLS: kills(counts), **dict(sorted((+counts).items())), LOST: 0},
    )
