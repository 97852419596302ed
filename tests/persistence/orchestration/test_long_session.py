"""A long session of several agents loses nothing when processes are killed, and stays fast and small."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from helpers import processes, projection_processes
from helpers.agent_session import long_session
from helpers.event_strategies import EVENT_CLASSES
from helpers.random_events import batches
from helpers.reference_model import ReferenceModel, State, state_of
from sqlalchemy import Engine, event, update

from peon.orchestration import (
    ActionApproved,
    ApprovalRequested,
    ChangesCommitted,
    CheckpointCreated,
    MessageAppended,
    MessageChunkReceived,
    MessageRole,
    OrchestrationEvent,
    ProjectCreated,
    Provider,
    RuntimeMode,
    TextContent,
    ThreadCreated,
    ThreadStatus,
    ThreadStatusChanged,
    TurnCompleted,
    TurnStarted,
)
from peon.persistence import Database, schema

Opener = Callable[..., Database]

KILLED = -9


def test_the_tables_match_the_events_and_a_rebuild_changes_nothing(open_empty: Opener) -> None:
    events = long_session(250)
    assert {type(each) for each in events} == set(EVENT_CLASSES)
    assert len(events) > 5_000
    model = ReferenceModel()
    assert model.follow_all(events) == {}
    database = open_empty()

    for batch in batches(Random(2), events, (1, 10, 50, 100)):
        database.events.append_all(batch)

    assert state_of(database.read_model, model.approvals) == model.state()
    assert database.projections.verify() == []
    database.projections.rebuild()
    assert database.read_model.snapshot() == model.snapshot()


def address(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


def run_and_kill(function: Callable[..., object], *arguments: object) -> bool:
    """Returns whether the process was killed before it ended."""
    (code,) = processes.exit_codes(function, [arguments])
    assert code in (KILLED, 0)
    return code == KILLED


def require(database: Database, model: ReferenceModel, problems: list[int]) -> None:
    assert database.projections.position() == model.sequence
    assert state_of(database.read_model, model.approvals) == model.state()
    assert [problem.sequence for problem in database.projections.problems()] == problems


@pytest.mark.slow
class TestKill9:
    """Each test reads without catching up first, which would repair half-done work."""

    def test_in_an_append(self, open_lasting: Opener) -> None:
        database = open_lasting()
        session = projection_processes.session()
        ends = [0, *accumulate(map(len, session))]
        model = ReferenceModel()
        first = 0
        for statements in [0, 1, 2, 4, 6, 8, 11, 20, 40, 80]:
            assert run_and_kill(projection_processes.append_and_die, address(database), first, statements)

            number = ends.index(database.events.last_sequence())
            for batch in session[first:number]:
                model.follow_all(batch)
            require(database, model, [])
            first = number

        assert first >= 4
        with Database.open(url=address(database)) as reopened:
            for batch in session[first:]:
                reopened.events.append_all(batch)
                model.follow_all(batch)
            require(reopened, model, [])
            assert reopened.projections.verify() == []

    def test_in_a_catch_up(self, open_lasting: Opener) -> None:
        database = open_lasting(maintain_projections=False)
        events = [each for batch in projection_processes.session() for each in batch]
        for place in (300, 200, 100):
            events.insert(place, events[0])
        database.events.append_all(events)
        model = ReferenceModel()
        problems: list[int] = []
        positions = [0]
        statements = 30
        while run_and_kill(projection_processes.open_and_die, address(database), statements):
            positions.append(database.projections.position())
            problems += model.follow_all(events[positions[-2] : positions[-1]])
            require(database, model, problems)
            statements += 30

        problems += model.follow_all(events[positions[-1] :])
        require(database, model, problems)
        assert len(set(positions)) > 4
        assert len(problems) == 3
        assert [difference.table for difference in database.projections.verify()] == ["projection_problems"] * 3

    def test_in_a_rebuild(self, open_lasting: Opener) -> None:
        database = open_lasting()
        events = long_session(3)
        database.events.append_all(events)
        model = ReferenceModel()
        model.follow_all(events)
        sound = model.state()

        def make_old() -> State:
            """Marks the tables as written by another version."""
            with database.engine.begin() as connection:
                connection.execute(update(schema.projection_positions).values(version=0))
                connection.execute(update(schema.projection_threads).values(title="of another version"))
            return state_of(database.read_model, model.approvals)

        old = make_old()
        statements = processes.run(projection_processes.statements_of_opening, address(database))
        assert state_of(database.read_model, model.approvals) == sound
        make_old()
        outcomes = []
        last = range(statements - 16, statements, 3)
        for number in [statements // 4, statements // 2, *last]:
            assert run_and_kill(projection_processes.open_and_die, address(database), number)
            state = state_of(database.read_model, model.approvals)
            assert state in (old, sound)
            outcomes.append(state == sound)
            if state == sound:
                make_old()

        assert outcomes == sorted(outcomes)
        # The last statements follow the commit: they look for problems, to log them.
        assert set(outcomes) == {False, True}
        with Database.open(url=address(database)) as reopened:
            require(reopened, model, [])
            assert reopened.projections.verify() == []


PROJECT, THREAD, TURN, MESSAGE = (UUID(int=number) for number in range(1, 5))
PLACE: dict[str, Any] = {"turn_id": TURN, "thread_id": THREAD}


def message(identifier: UUID, turn_id: UUID = TURN) -> MessageAppended:
    content = TextContent(text="")
    return MessageAppended(
        message_id=identifier, role=MessageRole.ASSISTANT, content=content, turn_id=turn_id, thread_id=THREAD
    )


def chunks(count: int) -> list[OrchestrationEvent]:
    return [MessageChunkReceived(message_id=MESSAGE, delta="twenty-five characters ..", **PLACE)] * count


BEGINNING: list[OrchestrationEvent] = [
    ProjectCreated(project_id=PROJECT, name="tide-table", path="/home/ada/tide-table"),
    ThreadCreated(
        thread_id=THREAD,
        project_id=PROJECT,
        provider=Provider.CODEX,
        model="a-model",
        runtime_mode=RuntimeMode.FULL_ACCESS,
    ),
    TurnStarted(**PLACE),
    message(MESSAGE),
    *chunks(1),
]


def one_of_each() -> list[list[OrchestrationEvent]]:
    """Returns appends that are common in a session, to a turn of their own."""
    turn_id, approval_id = uuid4(), uuid4()
    place: dict[str, Any] = {"turn_id": turn_id, "thread_id": THREAD}
    return [
        [TurnStarted(**place)],
        [message(uuid4(), turn_id), *chunks(10)],
        chunks(1),
        [ApprovalRequested(approval_id=approval_id, action="shell", detail=None, **place)],
        [ActionApproved(approval_id=approval_id, **place)],
        [CheckpointCreated(checkpoint_id=uuid4(), git_ref="refs/peon/1", **place)],
        [ChangesCommitted(thread_id=THREAD, commit="c0ffee", message="Tides")],
        [ThreadStatusChanged(thread_id=THREAD, status=ThreadStatus.IDLE)],
        [TurnCompleted(**place)],
    ]


def make_large(database: Database) -> None:
    """Appends 300 more turns to the thread, and makes the text of its message a hundred times as long."""
    for _ in range(6):
        database.events.append_all([each for _ in range(50) for append in one_of_each() for each in append])


class Costs:
    """Measures the cost of consecutive appends."""

    def __init__(self) -> None:
        self.statements = 0
        self.steps = 0
        """Counts instructions of SQLite's virtual machine."""

    def count_statement(self, *_: object) -> None:
        self.statements += 1

    def count_step(self) -> None:
        self.steps += 1

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.statements += 1
            return function(*arguments, **options)

        return counted

    def of(self, database: Database, appends: list[list[OrchestrationEvent]]) -> list[tuple[int, int]]:
        costs = []
        for append in appends:
            before = self.statements, self.steps
            database.events.append_all(append)
            costs.append((self.statements - before[0], self.steps - before[1]))
        return costs


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    costs = Costs()
    psycopg = pytest.importorskip("psycopg")
    for name in ("execute", "executemany"):
        monkeypatch.setattr(psycopg.Cursor, name, costs.counted(getattr(psycopg.Cursor, name)))
    return costs


@contextmanager
def counting_in_sqlite(engine: Engine, costs: Costs) -> Iterator[None]:
    def listen(connection: Any, *_: object) -> None:
        if engine.dialect.name == "sqlite":
            connection.set_trace_callback(costs.count_statement)
            connection.set_progress_handler(costs.count_step, 1)

    event.listen(engine, "checkout", listen)
    yield
    event.remove(engine, "checkout", listen)


def test_the_cost_of_an_append_is_independent_of_thread_and_message_length(open_empty: Opener, costs: Costs) -> None:
    database = open_empty()
    database.events.append_all(BEGINNING)
    database.events.append_all([each for append in one_of_each() for each in append])  # prepares the statements
    database.events.close()
    with counting_in_sqlite(database.engine, costs):
        small = costs.of(database, one_of_each())
        make_large(database)
        database.events.close()  # the first append takes a connection from the pool, as above
        large = costs.of(database, one_of_each())
        database.events.close()

    assert [statements for statements, _ in large] == [statements for statements, _ in small]
    for (_, steps_in_small), (_, steps_in_large) in zip(small, large, strict=True):
        assert steps_in_large <= 1.1 * steps_in_small + 50


def test_a_chunk_writes_the_same_amount_for_any_message_length(open_empty_file: Opener) -> None:
    database = open_empty_file()
    log = Path(f"{database.engine.url.database}-wal")

    @event.listens_for(database.engine, "checkout")
    def keep_all_that_is_written(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA wal_autocheckpoint = 0")

    def written() -> int:
        before = log.stat().st_size
        database.events.append_all(chunks(10))
        return log.stat().st_size - before

    database.events.close()
    database.events.append_all([*BEGINNING, *chunks(500)])
    at_first = max(written() for _ in range(20))
    for _ in range(10):
        database.events.append_all(chunks(1_000))

    assert max(written() for _ in range(20)) <= 1.5 * at_first


def seconds_of_streaming(database: Database, count: int) -> float:
    """Streams a message in commits of ten chunks each, up to the end of the turn."""
    turn_id, message_id = uuid4(), uuid4()
    place: dict[str, Any] = {"turn_id": turn_id, "thread_id": THREAD}
    database.events.append_all([TurnStarted(**place), message(message_id, turn_id)])
    ten = [MessageChunkReceived(message_id=message_id, delta="twenty-five characters ..", **place)] * 10
    before = time.perf_counter()
    for _ in range(count // 10):
        database.events.append_all(ten)
    database.events.append_all([TurnCompleted(**place)])
    return time.perf_counter() - before


@pytest.mark.slow
@pytest.mark.alone
def test_the_time_of_streaming_grows_linearly(open_lasting: Opener) -> None:
    rounds = []
    for _ in range(4):
        database = open_lasting()
        database.events.append_all(BEGINNING)
        rounds.append((seconds_of_streaming(database, 5_000), seconds_of_streaming(database, 20_000)))

    # Four times as many: if the time of a chunk grew with the message, it would be sixteen times as long.
    quarter, whole = (min(times) for times in zip(*rounds, strict=True))
    assert whole / quarter <= 4**1.2


@pytest.mark.slow
@pytest.mark.alone
def test_streamed_text_leaves_a_small_file(open_empty_file: Opener) -> None:
    database = open_empty_file()
    database.events.append_all(BEGINNING)
    seconds_of_streaming(database, 20_000)
    database.close()

    path = Path(str(database.engine.url.database))
    assert sum(file.stat().st_size for file in path.parent.iterdir()) <= 40_000_000


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["file", "postgresql"])
def test_memory_stays_constant_over_a_million_events(backend: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(f"open_empty_{backend}")(maintain_projections=False)
    identifiers = [uuid4() for _ in range(4)]
    database.events.append_all([*BEGINNING, *(message(identifier) for identifier in identifiers)])
    part: list[OrchestrationEvent] = [
        MessageChunkReceived(message_id=identifier, delta="x" * 40, **PLACE)
        for _ in range(2_500)
        for identifier in identifiers
    ]
    for _ in range(101):
        database.events.append_all([*part, TurnStarted(turn_id=uuid4(), thread_id=THREAD)])
    assert database.events.last_sequence() > 1_000_000
    projections = Database(database.engine).projections
    gc.collect()
    before = resident()
    highest = [before]

    def measure(done: int, total: int) -> None:
        highest[0] = max(highest[0], resident())

    projections.catch_up(measure)
    assert projections.position() == database.events.last_sequence()
    assert highest[0] - before < 60_000_000

    projections.rebuild(measure)
    measure(0, 0)  # what dropping the temporary tables took is not given back
    assert highest[0] - before < 60_000_000
    assert database.read_model.turn(TURN) is not None
