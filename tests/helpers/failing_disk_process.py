"""An application whose disk fails. Runs in a process that has loaded the shim; see `failing_disk`.

It prints, as JSON, how often it has done what and with which outcome.
"""

import errno
import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

from helpers.campaign_workload import (
    CONSUMER,
    Notes,
    batches_of,
    check_sound,
    create_effects,
    scene,
    take_effect,
    thread_of,
    turn_id,
)
from helpers.failing_disk import ALWAYS, EXTENDING_ONLY, SHORT_WRITES, SYNCS, SYNCS_ONLY, FailingDisk
from helpers.kill_processes import OPERATIONS, use_small_steps
from helpers.processes import die
from sqlalchemy.exc import DBAPIError

from peon.persistence import Database, PersistenceError

STEPS = 40
EVENTS_A_STEP = 60
LAST_STAGE = 4_000


class Application:
    """One process on one database file, with a writer that repeats what has failed."""

    def __init__(self, disk: FailingDisk, database: Path, notes: Path, writer: int) -> None:
        self.disk = disk
        self.file = database
        self.notes = Notes(notes / f"{writer}.notes")
        self.writer = writer
        self.turn = 0
        self.number = 0
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.database = self._open()

    def _open(self) -> Database:
        return Database.open(url=f"sqlite:///{self.file}")

    def prepare(self) -> None:
        if self.database.read_model.thread(thread_of(0)) is None:
            create_effects(self.database)
            self.database.events.append_all(scene())
            self.database.events.durable_subscription(CONSUMER).close()
        unfinished = self.database.read_model.unfinished_work()
        self.database.events.append_all(unfinished.closing_events())

    def append(self) -> None:
        """Appends the next batch. If that fails, the next call tries it again."""
        batch = (self.writer, self.turn, self.number)
        batches = batches_of(self.writer, self.turn)
        command = turn_id(self.writer, self.turn) if self.number == 0 else None
        self.notes.begins(batch)
        try:
            stored = self.database.events.append_all(batches[self.number], command_id=command)
        except PersistenceError as error:
            if "may have taken place" in str(error):
                self.counts["outcomes that were unknown"] += 1
            else:
                self.notes.failed(batch)
            raise
        self.notes.acknowledged(batch, stored)
        self.number += 1
        if self.number == len(batches):
            self.turn, self.number = self.turn + 1, 0

    def append_several(self) -> None:
        for _ in range(8):
            self.append()

    def consume(self) -> None:
        with self.database.events.durable_subscription(CONSUMER) as subscription:
            for _ in range(EVENTS_A_STEP):
                if subscription.position >= self.database.events.last_sequence():
                    return
                stored = next(subscription)
                with self.database.engine.begin() as connection:
                    take_effect(connection, stored)
                    subscription.save_position(connection=connection)

    def set(self) -> None:
        self.database.settings.set("campaign", self.steps)

    def open_again(self) -> None:
        self.database.close()
        self.database = self._open()

    def actions(self) -> dict[str, Callable[[], None]]:
        own = {"append": self.append_several, "consumer": self.consume, "setting": self.set, "start": self.open_again}
        return own | {name: self._operation(name) for name in OPERATIONS}

    def _operation(self, name: str) -> Callable[[], None]:
        def perform() -> None:
            OPERATIONS[name](self.database, self.file.parent, f"{self.writer}_{self.steps}")

        return perform

    def attempt(self, action: str) -> tuple[bool, int]:
        """Performs an action on a disk that fails; then it is healed, and everything must work.

        Returns:
            Whether it was done, and how many calls have failed.
        """
        self.steps += 1
        done = False
        try:
            self.actions()[action]()
            done = True
        except (PersistenceError, DBAPIError) as error:  # of the driver: from the consumer's own transaction
            self.counts[f"error: {type(error).__name__}"] += 1
        failed = self.disk.heal()
        self.counts["calls that failed"] += failed
        self.counts[f"{action}: {'done' if done else 'failed'}"] += failed > 0
        if not done and not failed:
            raise AssertionError(f"{action} failed on a good disk")
        self.append()
        return done, failed


def fail_at_random(app: Application, chance: Random) -> None:
    for _ in range(STEPS):
        error = chance.choice([errno.EIO, errno.ENOSPC])
        flags = chance.choice([0, SHORT_WRITES])
        flags |= chance.choice([SYNCS, SYNCS_ONLY] if error == errno.EIO else [0, EXTENDING_ONLY])
        app.disk.fail(chance.choice([ALWAYS // 200, ALWAYS // 30, ALWAYS // 5, ALWAYS]), error, flags)
        app.attempt(chance.choice(["append", "append", *app.actions()]))
        if chance.random() < 0.03:
            app.disk.fail(ALWAYS // 2, errno.EIO, chance.choice([SYNCS, SYNCS_ONLY, SHORT_WRITES]))
            die_after_failure(app)


def die_after_failure(app: Application) -> None:
    """Leaves the -wal file as the append that failed has left it."""
    while True:
        try:
            app.append()
        except PersistenceError:
            finish(app)
            die()


def fill_at_each_stage(app: Application, chance: Random) -> None:
    """Repeats each action on a disk that becomes full a little later each time, until no write fails."""
    for action in app.actions():
        after = chance.randrange(2)
        for _ in count():
            app.append_several()
            if action != "consumer":  # a compaction needs events that the consumer has read
                app.consume()
            app.disk.fail(ALWAYS, errno.ENOSPC, chance.choice([0, EXTENDING_ONLY]), after)
            _, failed = app.attempt(action)
            if not failed or after > LAST_STAGE:
                break
            app.counts["stages"] += 1
            after += 1 + after * chance.randrange(1, 3) // 3


def finish(app: Application) -> None:
    print(json.dumps(app.counts), flush=True)  # noqa: T201


def main(mode: str, switches: str, database: str, notes: str, writer: str) -> None:
    use_small_steps()
    chance = Random(f"{mode} {writer}")
    disk = FailingDisk(Path(switches), Path(database).parent, int(writer))
    app = Application(disk, Path(database), Path(notes), int(writer))
    app.prepare()
    {"random": fail_at_random, "full": fill_at_each_stage}[mode](app, chance)
    app.database.close()
    check_sound(Path(database))
    finish(app)


if __name__ == "__main__":
    main(*sys.argv[1:])
