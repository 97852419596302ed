"""Events of an application's own beside the domain's, and a projection that follows both."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from helpers.orchestration_scene import THREAD
from pydantic import Field
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, update

from peon.orchestration import Event, OrchestrationEvent, ThreadCreated
from peon.persistence import EventCodec, Projection, Refusal, StoredEvent


class Noted(Event):
    """A user has made a note in a thread."""

    type: Literal["Noted"] = "Noted"
    thread_id: UUID
    author: str
    weight: float = 1.0


AppEvent = Annotated[OrchestrationEvent | Noted, Field(discriminator="type")]

codec = EventCodec(AppEvent, tags=["author"])

notes = Table(
    "own_notes",
    MetaData(),
    Column("thread_id", Text, primary_key=True),
    Column("notes", Integer, nullable=False),
    Column("last", Integer),
)


class Notes(Projection):
    """Counts the notes of each thread; refuses notes without an author."""

    name = "notes"
    version = 1
    tables: ClassVar[Sequence[Table]] = (notes,)

    def apply(self, connection: Connection, events: Sequence[StoredEvent[AppEvent]]) -> Iterator[Refusal]:
        for sequence, event, _ in events:
            if isinstance(event, ThreadCreated):
                connection.execute(insert(notes).values(thread_id=str(event.thread_id), notes=0))
            elif isinstance(event, Noted):
                if not event.author:
                    yield Refusal(sequence, "a note of nobody")
                else:
                    of_thread = update(notes).where(notes.c.thread_id == str(event.thread_id))
                    connection.execute(of_thread.values(notes=notes.c.notes + 1, last=sequence))


def noted(author: str = "ada", thread_id: UUID = THREAD) -> Noted:
    return Noted(thread_id=thread_id, author=author)
