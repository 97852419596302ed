"""Processes that start together after the one before them was killed."""

from threading import Barrier

from peon.orchestration import OrchestrationEvent
from peon.persistence import Database, StoredEvent


def start_after_kill(both_have_opened: Barrier, both_have_read: Barrier, url: str) -> None:
    """Opens the database and closes what was left open, at the same time as another process."""
    with Database.open(url=url) as database:
        both_have_opened.wait(60)
        close_unfinished_work(database, both_have_read)


def close_unfinished_work(database: Database, both_have_read: Barrier) -> list[StoredEvent[OrchestrationEvent]]:
    unfinished = database.read_model.unfinished_work()
    both_have_read.wait(60)
    return database.events.append_all(unfinished.closing_events(), command_id=unfinished.command_id)
