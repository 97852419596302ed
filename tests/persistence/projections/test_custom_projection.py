"""A projection that an application defines is maintained, rebuilt and verified like the built-in one."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from uuid import UUID

import pytest
from helpers.processes import PATIENCE
from helpers.word_count_projection import PROJECT, SCENE, THREAD, TURN, UNKNOWN, Opener, WordCount, said, words, writers
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    Table,
    Text,
    delete,
    event,
    insert,
    inspect,
    select,
    update,
)

from peon.orchestration import (
    MessageAppended,
    OrchestrationEvent,
    ProjectRenamed,
)
from peon.persistence import (
    Database,
    Problem,
    Projection,
    ProjectionError,
    Refusal,
    StoredEvent,
    StoreUnavailable,
    schema,
)
from peon.persistence.orchestration.projection import OrchestrationProjection


def renamed(name: str, identifier: UUID = PROJECT) -> ProjectRenamed:
    return ProjectRenamed(project_id=identifier, name=name)


WORDS = [("and", 1, [5], False), ("ebb", 2, [5, 6], False), ("flow", 1, [5], False), ("tide", 1, [6], False)]


def rows(database: Database, table: Table) -> list[Any]:
    with database.engine.connect() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key)).all())


def found(database: Database) -> list[Any]:
    assert rows(database, writers) == [
        (str(THREAD), str(PROJECT), sum(count for _, _, count, *_ in rows(database, words)))
    ]
    return [row[1:] for row in rows(database, words)]


def change(database: Database, *statements: Any) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def append_alone(database: Database, *events: OrchestrationEvent) -> None:
    alone = Database(database.engine, maintain_projections=False)
    alone.events.append_all(events)
    alone.events.close()


@pytest.fixture
def database(open_empty: Opener) -> Database:
    return open_empty(projections=[WordCount()])


def test_tables_are_created_when_the_database_is_opened(database: Database) -> None:
    assert rows(database, writers) == rows(database, words) == []
    with database.engine.connect() as connection:
        assert [index["name"] for index in inspect(connection).get_indexes(words.name)] == ["idx_words"]
    assert database.projections.verify() == []


class TestAppend:
    def test_updates_the_projection_in_its_transaction(self, database: Database) -> None:
        database.events.append_all(SCENE[:5])
        before = rows(database, writers), rows(database, words)
        with database.engine.connect() as connection:
            database.events.append_all(SCENE[5:], connection=connection)
            assert len(connection.execute(select(words)).all()) == 4
            connection.rollback()
        assert (rows(database, writers), rows(database, words)) == before

        with database.engine.begin() as connection:
            database.events.append_all(SCENE[5:], connection=connection)
        assert found(database) == WORDS
        assert rows(database, schema.projection_positions) == [
            ("orchestration", OrchestrationProjection.version, 7),
            ("word_count", 1, 7),
        ]

    def test_is_refused_as_a_whole_if_one_event_is_refused(self, database: Database) -> None:
        database.events.append_all(SCENE)

        with pytest.raises(ProjectionError) as caught:
            database.events.append_all([said("high"), said("blistering barnacles"), said("low")])

        assert (caught.value.index, caught.value.event_type) == (1, "MessageAppended")
        assert caught.value.reason == "bad language"
        assert database.events.last_sequence() == database.projections.position() == len(SCENE)
        assert len(database.read_model.messages(TURN)) == 2
        assert found(database) == WORDS

    def test_refused_by_the_domain_changes_nothing_in_the_projection(self, database: Database) -> None:
        database.events.append_all(SCENE)

        with pytest.raises(ProjectionError, match="there is no project"):
            database.events.append_all([said("high"), ProjectRenamed(project_id=UNKNOWN, name="x")])

        assert found(database) == WORDS

    def test_fails_as_a_whole_if_the_projection_raises(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.events.append_all(SCENE)

        def write_and_fail(self: WordCount, connection: Connection, events: object) -> None:
            self.add(connection, str(THREAD), "never", 8)
            raise LookupError("from the projection")

        with monkeypatch.context() as patched, pytest.raises(LookupError, match="from the projection"):
            patched.setattr(WordCount, "apply", write_and_fail)
            database.events.append_all([said("high")])

        assert database.events.last_sequence() == database.projections.position() == len(SCENE)
        assert len(database.read_model.messages(TURN)) == 2
        assert found(database) == WORDS
        database.events.append_all([said("high")])
        assert database.projections.verify() == []

    def test_applies_events_that_were_appended_without_the_projection(self, database: Database) -> None:
        append_alone(database, *SCENE[:4])
        without = Database(database.engine)
        without.events.append_all(SCENE[4:6])
        without.events.close()
        assert (without.projections.position(), database.projections.position()) == (6, 0)

        database.events.append_all(SCENE[6:])

        assert found(database) == WORDS
        assert database.projections.position() == len(SCENE)
        assert database.projections.verify() == []

    def test_cannot_be_refused_for_an_event_outside_the_batch(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.events.append_all(SCENE)
        with monkeypatch.context() as patched, pytest.raises(TypeError, match="word_count"):
            patched.setattr(WordCount, "apply", lambda *_: [Refusal(3, "too late")])
            database.events.append_all([said("high")])

        assert database.events.last_sequence() == database.projections.position() == len(SCENE)

    def test_apply_may_return_none(self, open_empty: Opener) -> None:
        class Silent(WordCount):
            def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> None:
                list(super().apply(connection, events))

        database = open_empty(projections=[Silent()])
        append_alone(database, *SCENE[:5])
        database.events.append_all(SCENE[5:])
        assert found(database) == WORDS

        database.projections.rebuild()
        assert found(database) == WORDS


gate_metadata = MetaData()
names = Table("gate_names", gate_metadata, Column("name", Text, primary_key=True))


class Gate(Projection):
    """Stores each project name once; holds the first append until a number of other appends wait for it."""

    name = "gate"
    version = 1
    tables = (names,)

    def __init__(self, others: int) -> None:
        self.others = others
        self.store: Any = None
        self.entered = threading.Event()

    def apply(self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]) -> None:
        for _, told, _ in events:
            if isinstance(told, ProjectRenamed):
                connection.execute(insert(names).values(name=told.name))
        if not self.entered.is_set():
            self.entered.set()
            deadline = time.monotonic() + PATIENCE
            while len(self.store._writer._waiting) < self.others and time.monotonic() < deadline:
                os.sched_yield()


class TestThreadsThatShareACommit:
    @pytest.mark.parametrize(
        ("unfit", "error", "index"),
        [
            ([renamed("b"), renamed("c", UNKNOWN)], ProjectionError, 1),
            ([renamed("b"), renamed("first")], StoreUnavailable, None),
        ],
        ids=["contradictory", "refused by the database"],
    )
    def test_each_thread_fails_for_its_own_events_only(
        self, open_empty: Opener, unfit: list[OrchestrationEvent], error: type[Exception], index: int | None
    ) -> None:
        gate = Gate(others=4)
        database = open_empty(projections=[gate])
        gate.store = database.events
        batches = [[SCENE[0], renamed("first")], *([renamed(f"{n}a"), renamed(f"{n}b")] for n in range(3)), unfit]

        with ThreadPoolExecutor(len(batches)) as pool:
            first = pool.submit(database.events.append_all, batches[0])
            assert gate.entered.wait(PATIENCE)
            futures = [first, *(pool.submit(database.events.append_all, batch) for batch in batches[1:])]
            outcomes = [future.exception() or future.result() for future in futures]

        assert isinstance(outcomes[-1], error)
        assert getattr(outcomes[-1], "index", None) == index
        for batch, stored in zip(batches[:-1], outcomes, strict=False):
            assert [each.event for each in stored] == batch  # type: ignore[union-attr]
        assert sorted(name for (name,) in rows(database, names)) == ["0a", "0b", "1a", "1b", "2a", "2b", "first"]
        assert database.projections.position() == database.events.last_sequence() == 8
        assert database.projections.verify() == []


@pytest.mark.usefixtures("small_pages")
class TestExistingLog:
    def test_is_applied_when_the_projection_is_added(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        with Database.open(
            url=database.engine.url, projections=[WordCount()], progress=lambda *pair: reported.append(pair)
        ) as opened:
            assert found(opened) == WORDS
            assert opened.projections.verify() == []

        assert reported == [(7, 7)]

    def test_a_refused_stored_event_is_a_problem_of_that_projection(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, said("barnacles"), ProjectRenamed(project_id=UNKNOWN, name="x"), said("high"))

        database.projections.catch_up()

        assert database.projections.problems() == [
            Problem("orchestration", 9, "ProjectRenamed", f"there is no project {UNKNOWN}"),
            Problem("word_count", 8, "MessageAppended", "bad language"),
        ]
        assert len(database.read_model.messages(TURN)) == 4
        assert [row[0] for row in found(database)] == ["and", "ebb", "flow", "high", "tide"]
        assert [difference.key for difference in database.projections.verify()] == ["orchestration/9", "word_count/8"]
        before = rows(database, schema.projection_problems)
        database.projections.rebuild()
        assert rows(database, schema.projection_problems) == before

    def test_an_exception_stops_the_projection_at_its_position(
        self, open_lasting: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        url = database.engine.url

        with monkeypatch.context() as patched, pytest.raises(LookupError):
            patched.setattr(WordCount, "add", lambda *_: {}["from the projection"])
            Database.open(url=url, projections=[WordCount()])

        with Database.open(url=url, projections=[WordCount()]) as opened:
            assert found(opened) == WORDS

    def test_a_projection_that_was_left_out_resumes_at_its_position(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=[WordCount()])
        database.events.append_all(SCENE[:5])
        with Database.open(url=database.engine.url) as without:
            without.events.append_all(SCENE[5:])
            assert without.projections.position() == len(SCENE)
            assert without.projections.verify() == []
        assert database.projections.position() == 5
        applied: list[int] = []

        class Noting(WordCount):
            def apply(
                self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]
            ) -> Iterator[Refusal]:
                applied.extend(stored.sequence for stored in events)
                return super().apply(connection, events)

        with Database.open(url=database.engine.url, projections=[Noting()]) as opened:
            assert found(opened) == WORDS
        assert applied == [6, 7]


class TestRebuildAndVerify:
    def test_a_changed_row_is_found_and_repaired(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(
            database,
            update(words).filter_by(word="ebb").values(count=3, seen=[5]),
            delete(words).filter_by(word="flow"),
            insert(words).values(thread_id=str(THREAD), word="x", count=1, seen=[]),
        )

        differences = {(each.key.partition("/")[2], each.column): each[3:] for each in database.projections.verify()}

        assert differences == {
            ("ebb", "count"): (2, 3),
            ("ebb", "seen"): ("[5, 6]", "[5]"),
            ("flow", "thread_id"): (str(THREAD), None),
            ("flow", "word"): ("flow", None),
            ("flow", "count"): (1, None),
            ("flow", "seen"): ("[5]", None),
            ("flow", "long"): (False, None),
            ("x", "thread_id"): (None, str(THREAD)),
            ("x", "word"): (None, "x"),
            ("x", "count"): (None, 1),
            ("x", "seen"): (None, "[]"),
        }
        reported: list[tuple[int, int]] = []
        database.projections.rebuild(lambda *pair: reported.append(pair))
        assert found(database) == WORDS
        assert database.projections.verify() == []
        assert reported == [(7, 14), (14, 14)]

    def test_an_interrupted_rebuild_changes_nothing(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(database, update(words).values(count=7), update(schema.projection_projects).values(name="tampered"))
        before = rows(database, words), rows(database, writers)

        def interrupt(done: int, total: int) -> None:
            if done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.projections.rebuild(interrupt)

        assert (rows(database, words), rows(database, writers)) == before
        database.projections.rebuild()
        assert found(database) == WORDS

    def test_verify_finds_no_difference_during_a_rebuild(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=[WordCount()])
        database.events.append_all(SCENE)
        with Database.open(url=database.engine.url, projections=[WordCount()]) as other:

            def rebuild(done: int, total: int) -> None:
                if done == total:
                    other.projections.rebuild()

            assert database.projections.verify(rebuild) == []

    def test_verify_compares_one_consistent_state_during_appends(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=[WordCount()])
        database.events.append_all(SCENE)
        begun = 0
        with Database.open(url=database.engine.url, projections=[WordCount()]) as other:

            def append(_: Connection) -> None:
                nonlocal begun
                begun += 1
                other.events.append_all([renamed(f"{begun}")])

            event.listen(database.engine, "begin", append)
            assert database.projections.verify() == []
            event.remove(database.engine, "begin", append)

        assert begun > 1


class WithAnotherColumn(WordCount):
    version = 2
    counted = Table(
        "word_count_words",
        MetaData(),
        Column("word", Text, primary_key=True),
        Column("thread_id", Text, nullable=False),
    )
    tables: ClassVar[Sequence[Table]] = (counted,)

    def apply(  # type: ignore[override]
        self, connection: Connection, events: Sequence[StoredEvent[OrchestrationEvent]]
    ) -> None:
        for _, told, _ in events:
            if isinstance(told, MessageAppended):
                connection.execute(delete(self.counted))
                connection.execute(insert(self.counted).values(word="last", thread_id=str(told.thread_id)))


class TestAnotherVersion:
    def test_creates_the_tables_again_with_its_own_columns(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=[WordCount()])
        database.events.append_all(SCENE)
        url = database.engine.url

        with Database.open(url=url, projections=[WithAnotherColumn()]) as opened:
            assert rows(opened, WithAnotherColumn.counted) == [("last", str(THREAD))]
            opened.events.append_all([said("high")])
            assert opened.projections.verify() == []
            # The older version leaves the new tables alone; the newer one applies its event.
            database.events.append_all([said("low")])
            assert rows(opened, WithAnotherColumn.counted) == [("last", str(THREAD))]
            opened.projections.catch_up()
            assert opened.projections.verify() == []
