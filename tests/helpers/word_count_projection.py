"""A projection as an application would write it."""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from peon.orchestration import (
    MessageAppended,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    ProjectDeleted,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    ThreadDeleted,
    TurnStarted,
)
from peon.persistence import (
    Database,
    Projection,
    Refusal,
    StoredEvent,
)

Opener = Callable[..., Database]
own = MetaData()

writers = Table(
    "word_count_writers",
    own,
    Column("thread_id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("words", Integer, nullable=False),
)

words = Table(
    "word_count_words",
    own,
    Column("thread_id", ForeignKey(writers.c.thread_id, ondelete="CASCADE"), primary_key=True),
    Column("word", Text, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("seen", JSON, nullable=False),
    Column("long", Boolean),
)
Index("idx_words", words.c.word)


class WordCount(Projection):
    """Counts the words in the messages of a thread, with the events that contain them; refuses bad language."""

    name = "word_count"
    version = 1
    tables: ClassVar[Sequence[Table]] = (words, writers)

    def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> Iterator[Refusal]:
        for sequence, told, _ in events:
            match told:
                case ThreadCreated():
                    ids = {"thread_id": str(told.thread_id), "project_id": str(told.project_id)}
                    connection.execute(insert(writers).values(**ids, words=0))
                case ThreadDeleted():
                    connection.execute(delete(writers).filter_by(thread_id=str(told.thread_id)))
                case ProjectDeleted():
                    connection.execute(delete(writers).filter_by(project_id=str(told.project_id)))
                case MessageAppended(content=TextContent(text=text)):
                    if "barnacles" in text:
                        yield Refusal(sequence, "bad language")
                    else:
                        for word in text.split():
                            self.add(connection, str(told.thread_id), word, sequence)

    def add(self, connection: Connection, thread_id: str, word: str, sequence: int) -> None:
        connection.execute(update(writers).filter_by(thread_id=thread_id).values(words=writers.c.words + 1))
        row = connection.execute(select(words).filter_by(thread_id=thread_id, word=word)).mappings().one_or_none()
        if row is None:
            values = {"thread_id": thread_id, "word": word, "count": 1, "seen": [sequence], "long": len(word) > 4}
            connection.execute(insert(words).values(values))
        else:
            values = {"count": row["count"] + 1, "seen": [*row["seen"], sequence]}
            connection.execute(update(words).filter_by(thread_id=thread_id, word=word).values(values))


PROJECT, THREAD, OTHER_THREAD, TURN, UNKNOWN = (UUID(int=number) for number in range(1, 6))


def said(text: str) -> MessageAppended:
    said.count += 1  # type: ignore[attr-defined]
    return MessageAppended(
        message_id=UUID(int=1_000 + said.count),  # type: ignore[attr-defined]
        turn_id=TURN,
        thread_id=THREAD,
        role=MessageRole.ASSISTANT,
        content=TextContent(text=text),
    )


said.count = 0  # type: ignore[attr-defined]


def thread(identifier: UUID) -> ThreadCreated:
    return ThreadCreated(
        thread_id=identifier,
        project_id=PROJECT,
        provider=Provider.CLAUDE,
        model="a-model",
        runtime_mode=RuntimeMode.SUPERVISED,
    )


SCENE: list[OrchestrationEvent] = [
    ProjectCreated(project_id=PROJECT, name="tide-table", path="/home/ada/tide-table"),
    thread(THREAD),
    thread(OTHER_THREAD),
    TurnStarted(turn_id=TURN, thread_id=THREAD),
    said("ebb and flow"),
    said("ebb tide"),
    ThreadDeleted(thread_id=OTHER_THREAD),
]
