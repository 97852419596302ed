"""Child processes of the tests of the log."""

from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier, Event
from uuid import UUID

from helpers.processes import PATIENCE

from peon.orchestration import ProjectRenamed
from peon.persistence import Database


def append_one_by_one(barrier: Barrier, url: str, writer: int, count: int) -> None:
    with Database.open(url=url, maintain_projections=False) as database:
        barrier.wait(PATIENCE)
        for number in range(count):
            (stored,) = database.events.append_all([ProjectRenamed(project_id=UUID(int=writer), name=str(number))])
            assert stored.sequence > number


def read_until(barrier: Barrier, url: str, writers: int, last: int) -> None:
    """Reads the log repeatedly; checks that each event occurs once, in the order in which its writer stored it."""
    expected = dict.fromkeys((UUID(int=writer) for writer in range(writers)), 0)
    with Database.open(url=url, maintain_projections=False) as database:
        barrier.wait(PATIENCE)
        position = 0
        while position < last:
            for stored in database.events.stream(after=position):
                assert stored.sequence == position + 1
                assert isinstance(stored.event, ProjectRenamed)
                assert int(stored.event.name) == expected[stored.event.project_id]
                expected[stored.event.project_id] += 1
                position = stored.sequence


def append_until(stop: Event, appended: "Synchronized[int]", url: str) -> None:
    """Appends about 100 events a second, one by one, and counts them."""
    with Database.open(url=url, maintain_projections=False) as database:
        while not stop.wait(0.005):
            database.events.append_all([ProjectRenamed(project_id=UUID(int=2), name="y" * 300)])
            appended.value += 1
