"""An event of an application's own, and a projection that counts what it says: the tokens that each thread has used.

    database = Database.open(codec=codec, projections=[TokensPerThread()])

One log then holds the domain's events and `TurnTokensUsed`. Both kinds are stored in one order and in one
transaction, with the domain's tables and with the table of this projection.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, delete, insert, select, update

from peon import EventCodec, Projection, Refusal, StoredEvent
from peon.orchestration import OrchestrationEvent, ProjectDeleted, ThreadCreated, ThreadDeleted

TokenCount = Annotated[int, Field(ge=0, lt=2**53)]


class TurnTokensUsed(BaseModel):
    """The provider has reported what a turn has used; it may report more than once a turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["TurnTokensUsed"] = "TurnTokensUsed"
    turn_id: UUID
    thread_id: UUID
    model: str
    input_tokens: TokenCount
    output_tokens: TokenCount


AppEvent = OrchestrationEvent | TurnTokensUsed

# `thread_id` and `turn_id` are tags already, because the domain's events have them.
codec = EventCodec(AppEvent, tags=["model"])

tokens_per_thread = Table(
    "tokens_per_thread",
    MetaData(),
    Column("thread_id", Text, primary_key=True),
    Column("project_id", Text, nullable=False, index=True),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
)


class TokensPerThread(Projection):
    """Sums the tokens of each thread; refuses those of a thread that does not exist."""

    name = "tokens_per_thread"
    version = 1
    tables: ClassVar[Sequence[Table]] = (tokens_per_thread,)

    def apply(self, connection: Connection, events: Sequence[StoredEvent[AppEvent]]) -> Iterator[Refusal]:
        columns = tokens_per_thread.c
        for sequence, event, _ in events:
            match event:
                case ThreadCreated():
                    identifiers = {"thread_id": str(event.thread_id), "project_id": str(event.project_id)}
                    connection.execute(insert(tokens_per_thread).values(**identifiers, input_tokens=0, output_tokens=0))
                case TurnTokensUsed():
                    used = update(tokens_per_thread).where(columns.thread_id == str(event.thread_id))
                    more = {
                        "input_tokens": columns.input_tokens + event.input_tokens,
                        "output_tokens": columns.output_tokens + event.output_tokens,
                    }
                    if connection.execute(used.values(more)).rowcount == 0:
                        yield Refusal(sequence, f"there is no thread {event.thread_id}")
                case ThreadDeleted():
                    connection.execute(delete(tokens_per_thread).where(columns.thread_id == str(event.thread_id)))
                case ProjectDeleted():
                    connection.execute(delete(tokens_per_thread).where(columns.project_id == str(event.project_id)))
                case _:
                    pass


class TokenUsage(BaseModel):
    """The tokens that a thread has used."""

    input_tokens: int
    output_tokens: int


def tokens_of_thread(connection: Connection, thread_id: UUID) -> TokenUsage | None:
    """Returns what a thread has used; `None` if there is no such thread."""
    used = select(tokens_per_thread.c.input_tokens, tokens_per_thread.c.output_tokens)
    row = connection.execute(used.where(tokens_per_thread.c.thread_id == str(thread_id))).one_or_none()
    return None if row is None else TokenUsage(input_tokens=row.input_tokens, output_tokens=row.output_tokens)
