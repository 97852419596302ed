"""A WSGI application, and configuration of gunicorn, whose master has a subscription and a thread that reads."""

import os
import threading
from collections.abc import Callable, Iterable
from uuid import UUID

from peon.orchestration import ProjectRenamed
from peon.persistence import Database

database = Database.open(url=os.environ["DATABASE_OF_TEST"], maintain_projections=False)


def follow() -> None:
    for _ in database.events.subscribe():
        pass


def read() -> None:
    while True:
        database.events.replay_all()


for work in (follow, read):
    threading.Thread(target=work, daemon=True).start()


def application(_: object, start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


def post_worker_init(_: object) -> None:
    database.events.append_all([ProjectRenamed(project_id=UUID(int=1), name="started")])
