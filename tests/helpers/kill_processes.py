"""The processes of the campaign of kills: writers, consumers, and operations that run again and again."""

import json
import os
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import sqlalchemy
from helpers.campaign_redactions import Acknowledged, redact_some
from helpers.campaign_workload import (
    CONSUMER,
    NO_AGE,
    WRITERS,
    Notes,
    attempts,
    batches_of,
    take_effect,
    thread_of,
    turn_id,
)
from helpers.migrated_databases import address, thaw
from helpers.postgresql_schemas import in_schema
from sqlalchemy import URL, make_url, text

from peon.persistence import Database, ProjectionError, SubscriptionConflict
from peon.persistence.log import pages
from peon.persistence.maintenance import redaction, streamed_messages
from peon.persistence.operations.backups import back_up_database
from peon.persistence.projections import manager

BEGUN, WRITES, DONE = "begun", "writes", "done"
"""What a process reports. Only a redaction says when it is about to write: it reads the whole log before."""

reports: list[Pipe] = []
"""Where this process reports, if it is one of many."""

Step = Callable[[Database, Path, str], object]
"""An operation, with the folder of the campaign and a name that no other step has."""


def use_small_steps() -> None:
    """Divides operations into many transactions, between which a kill finds them."""
    pages.PAGE_EVENTS = 50
    manager.PAGES_A_COMMIT = 1
    streamed_messages.STEP_EVENTS = 20
    redaction.WRITTEN_AT_ONCE = 20


def rebuild(database: Database, folder: Path, name: str) -> None:
    database.projections.rebuild()


def compact(database: Database, folder: Path, name: str) -> None:
    database.maintenance.compact(older_than=NO_AGE)


def redact(database: Database, folder: Path, name: str) -> Acknowledged | None:
    def before_writing() -> None:
        for each in reports:
            each.send(WRITES)

    return redact_some(database, [thread_of(writer) for writer in range(WRITERS)], name, before_writing)


def vacuum(database: Database, folder: Path, name: str) -> None:
    database.maintenance.vacuum()


def full_vacuum(database: Database, folder: Path, name: str) -> None:
    database.maintenance.vacuum(full=True)


def back_up(database: Database, folder: Path, name: str) -> None:
    back_up_database(database.engine, folder / f"{name}.copy")


def migrate(database: Database, folder: Path, name: str) -> None:
    """Migrates another database, which was just created at the first revision, or empty on a server."""
    Database.open(url=prepare_to_migrate(database.engine.url, folder, name)).close()


OPERATIONS: dict[str, Step] = {
    "rebuild": rebuild,
    "compaction": compact,
    "redaction": redact,
    "vacuum": vacuum,
    "full vacuum": full_vacuum,
    "backup": back_up,
    "migration": migrate,
}
"""Operations that a kill must not harm, by name. Add any other one here."""


def prepare_to_migrate(url: URL, folder: Path, name: str) -> URL:
    if url.get_backend_name() == "sqlite":
        partial = thaw("001_initial", folder / f"{name}.partial")
        return URL.create("sqlite", database=str(partial.rename(folder / f"{name}.migrated")))
    schema = f"{str(url.query['options']).rpartition('=')[2]}_{name}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    (folder / f"{name}.schema").write_text(schema)
    return in_schema(url, schema)


def reporting_failure(main: Callable[..., None], folder: str, *arguments: object) -> None:
    """Runs a process that ends only when it is killed, or with an error that it notes."""
    try:
        main(folder, *arguments)
    except BaseException:
        Path(folder, f"{os.getpid()}.failure").write_text(traceback.format_exc())
        raise


def write(folder: str, url: str, writer: int, report: Pipe) -> None:
    """Appends turns, after it has cleaned up what the writer before it on the same thread has left."""
    notes = Notes(Path(folder, f"{writer}.notes"))
    report.send(BEGUN)
    with Database.open(url=url) as database:
        _repeat_last_command(database, folder, writer - WRITERS)
        _close_unfinished_turns(database, writer)
        for turn in count():
            for number, batch in enumerate(batches_of(writer, turn)):
                notes.begins((writer, turn, number))
                command = turn_id(writer, turn) if number == 0 else None
                notes.acknowledged((writer, turn, number), database.events.append_all(batch, command_id=command))


def _repeat_last_command(database: Database, folder: str, predecessor: int) -> None:
    """Repeats the command of which the writer before was not told whether it was stored: it is stored once."""
    file = Path(folder, f"{predecessor}.notes")
    before = attempts(file)
    if before and before[-1].first is None and before[-1].batch[2] == 0:
        batch = before[-1].batch
        stored = database.events.append_all(batches_of(*batch[:2])[0], command_id=turn_id(*batch[:2]))
        Notes(file).acknowledged(batch, stored)


def _close_unfinished_turns(database: Database, writer: int) -> None:
    while True:
        unfinished = database.read_model.unfinished_work().of_threads({thread_of(writer)})
        try:
            database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)
        except ProjectionError:  # a server was still committing for the killed process
            continue
        return


def consume(folder: str, url: str, report: Pipe) -> None:
    report.send(BEGUN)
    with Database.open(url=url) as database:
        while True:
            try:
                _consume(database)
            except SubscriptionConflict:  # a server was still committing for the killed process
                continue


def _consume(database: Database) -> None:
    with database.events.durable_subscription(CONSUMER) as subscription:
        for stored in subscription:
            with database.engine.begin() as connection:
                take_effect(connection, stored)
                subscription.save_position(connection=connection)


def operate(folder: str, url: str, operation: str, name: str, report: Pipe) -> None:
    reports.append(report)
    use_small_steps()
    with Database.open(url=url) as database:
        for number in count():
            report.send(BEGUN)
            done = OPERATIONS[operation](database, Path(folder), f"{name}_{number}")
            if isinstance(done, Acknowledged):
                file = Path(folder, f"{name}_{number}.partial")
                file.write_text(json.dumps(done))
                file.rename(file.with_suffix(".redaction"))
            report.send(DONE)


def acknowledged_redactions(folder: Path) -> list[Acknowledged]:
    return [Acknowledged(*json.loads(file.read_text())) for file in folder.glob("*.redaction")]


def migrated_databases(url: URL, folder: Path) -> Iterator[str]:
    """Yields the addresses of the databases that `migrate` was called for."""
    for file in folder.glob("*.migrated"):
        yield address(URL.create("sqlite", database=str(file)))
    for file in folder.glob("*.schema"):
        yield address(in_schema(make_url(url), file.read_text()))
