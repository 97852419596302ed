"""What is logged, with which fields, and that a handler can do no harm."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from helpers.orchestration_scene import SCENE, add_row, append_alone
from helpers.secret import SECRET
from sqlalchemy import URL, Connection, text

import peon.persistence
from peon.orchestration import ProjectRenamed
from peon.persistence import Database, EventQuery, EventStore
from peon.persistence.asynchronous import AsyncDatabase
from peon.persistence.backends import retries
from peon.persistence.backends.driver_errors import database_name
from peon.persistence.group_commit import transactions
from peon.persistence.log import tag_index
from peon.persistence.migrations import revisions
from peon.persistence.runtime.log_records import INDEX, report

Opener = Callable[..., Database]


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "peon")
    yield
    for record in caplog.records:
        if record.name.startswith("peon"):
            assert SECRET not in repr(vars(record))
            assert re.fullmatch(r"peon\.[a-z]+", record.name)


@pytest.fixture
def own_handler() -> Iterator[Callable[[logging.Handler], None]]:
    """Adds handlers to the logger `peon` until the end of the test."""
    added: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        added.append(handler)
        logging.getLogger("peon").addHandler(handler)

    yield add
    for handler in added:
        logging.getLogger("peon").removeHandler(handler)


class Calls(logging.Handler):
    """Calls a function with each record."""

    def __init__(self, function: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        self._function(record)


def renamed(name: str = SECRET) -> ProjectRenamed:
    return ProjectRenamed(project_id=uuid4(), name=name)


def found(caplog: pytest.LogCaptureFixture, logger: str) -> list[Any]:
    return [record for record in caplog.records if record.name == logger]


def names(store: EventStore[Any]) -> list[str]:
    return [stored.event.name for stored in store.replay_all()]


class TestMigration:
    def test_says_what_it_does(self, lasting_url: URL, caplog: pytest.LogCaptureFixture) -> None:
        with Database.open(url=lasting_url, maintain_projections=False) as database:
            database_found = database_name(database.engine)
        start, *steps, end = found(caplog, "peon.migrations")

        assert start.getMessage() == f"migrating {database_found} from base to {revisions()[-1]}"
        assert [step.peon_revision for step in steps] == list(revisions())
        assert {record.peon_database for record in (start, *steps, end)} == {database_found}
        assert end.peon_seconds >= sum(step.peon_seconds for step in steps) >= 0
        assert end.peon_copy is None
        assert {record.levelname for record in (start, *steps, end)} == {"INFO"}

        caplog.clear()
        Database.open(url=lasting_url, maintain_projections=False).close()
        assert not found(caplog, "peon.migrations")

    def test_names_its_copy(self, populated_url: URL, caplog: pytest.LogCaptureFixture) -> None:
        Database.open(url=populated_url, maintain_projections=False).close()
        end = found(caplog, "peon.migrations")[-1]
        assert Path(end.peon_copy).is_file()
        assert end.getMessage().endswith(f"; a copy from before is {end.peon_copy}")


class TestProjections:
    def test_catching_up_says_how_far_it_was_behind(self, open_empty: Opener, caplog: pytest.LogCaptureFixture) -> None:
        database = open_empty()
        append_alone(database, *SCENE)
        caplog.clear()
        database.projections.catch_up()

        start, end = found(caplog, "peon.projections")
        assert (start.peon_events, end.peon_events) == (len(SCENE), len(SCENE))
        assert "orchestration" == start.peon_projection == end.peon_projection
        assert end.peon_seconds > 0

        caplog.clear()
        database.projections.catch_up()
        assert not caplog.records

    @pytest.mark.parametrize("start_up", ["catch_up", "rebuild"])
    def test_events_that_cannot_be_decoded_are_reported(
        self, open_empty: Opener, caplog: pytest.LogCaptureFixture, start_up: str
    ) -> None:
        database = open_empty()
        append_alone(database, *SCENE)
        damaged = [add_row(database, "ProjectRenamed", f'{{"{SECRET}": ') for _ in range(12)]
        getattr(database.projections, start_up)()

        warning = found(caplog, "peon.projections")[-1]
        assert (warning.levelname, warning.peon_events, warning.peon_sequence) == ("WARNING", 12, damaged[0])
        assert warning.peon_sequences == damaged[:10]

        caplog.clear()
        append_alone(database, renamed())  # contradicts the tables
        database.projections.catch_up()
        assert found(caplog, "peon.projections")[-1].peon_sequences == [damaged[-1] + 1]


def test_filling_the_index_is_logged(
    open_empty: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tag_index, "TAIL_EVENTS", 0)
    database = open_empty(maintain_projections=False)
    database.events.append_all(SCENE)
    query = EventQuery(thread_id=uuid4())

    list(database.events.stream(query=query))
    assert [record.levelname for record in found(caplog, "peon.index")] == ["DEBUG", "DEBUG"]
    monkeypatch.setattr(tag_index, "LOGGED_EVENTS", 0)
    database.events.append_all([renamed()])
    list(database.events.stream(query=query))

    *_, start, end = found(caplog, "peon.index")
    assert (start.levelname, end.levelname) == ("INFO", "INFO")
    assert (start.peon_events, end.peon_events, end.peon_tags) == (1, 1, ["thread_id"])


class FailsOnce:
    """Makes the first append fail as if the server had undone its transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reason: str = "undone") -> None:
        monkeypatch.setattr(transactions, "reason_to_repeat", lambda *_, **__: reason)
        self._errors = iter([RuntimeError(SECRET)])

    def __call__(self, _: Connection, stored: object) -> None:
        for error in self._errors:
            raise error


class TestAppend:
    def test_logs_nothing_when_nothing_is_slow(self, open_empty: Opener, caplog: pytest.LogCaptureFixture) -> None:
        database = open_empty()
        caplog.clear()
        database.events.append_all(SCENE)
        assert not caplog.records

    def test_logs_that_it_is_repeated(
        self, open_empty: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        database = open_empty(maintain_projections=False)
        store: EventStore[Any] = EventStore(database.engine, on_append=FailsOnce(monkeypatch))
        store.append_all([renamed()])
        store.close()

        (record,) = found(caplog, "peon.transactions")
        assert (record.levelname, record.peon_attempt, record.peon_attempts) == ("WARNING", 1, retries.ATTEMPTS)
        assert record.peon_database == database_name(database.engine)

    def test_logs_that_its_connection_was_lost(
        self, open_empty_postgresql: Opener, caplog: pytest.LogCaptureFixture
    ) -> None:
        database = open_empty_postgresql(maintain_projections=False)
        database.events.append_all([renamed("a")])
        kept: Any = database.events._writer.connection  # type: ignore[attr-defined]
        pid = kept.connection.driver_connection.info.backend_pid
        with database.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

        database.events.append_all([renamed("b")])

        records = found(caplog, "peon.connections")
        assert any("repeating a transaction" in record.getMessage() for record in records)
        assert any("is unusable" in record.getMessage() for record in records)
        assert names(database.events) == ["a", "b"]

    def test_logs_a_long_wait_for_the_lock(
        self, open_empty: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(transactions, "LONG_WAIT_SECONDS", 0)
        database = open_empty(maintain_projections=False)
        database.events.append_all([renamed()])

        (record,) = found(caplog, "peon.transactions")
        assert 0 <= record.peon_seconds < 20
        assert "for the write lock of" in record.getMessage()

    def test_logs_the_same_in_an_event_loop(
        self, migrated_lasting_url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(transactions, "LONG_WAIT_SECONDS", 0)

        async def append() -> None:
            async with await AsyncDatabase.open(url=migrated_lasting_url, maintain_projections=False) as database:
                await database.events.append_all([renamed()])

        asyncio.run(append())
        assert len(found(caplog, "peon.transactions")) == 1


def test_other_transactions_log_a_long_wait_for_the_lock(
    open_empty: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retries, "LONG_WAIT_SECONDS", 0)
    database = open_empty(maintain_projections=False)
    database.settings.set("theme", SECRET)
    assert found(caplog, "peon.transactions")


class TestAHandlerThatAppends:
    """Records are logged when no lock is held, so the append of a handler takes place."""

    def test_while_appends_log(
        self,
        open_empty: Opener,
        monkeypatch: pytest.MonkeyPatch,
        own_handler: Callable[[logging.Handler], None],
    ) -> None:
        monkeypatch.setattr(transactions, "LONG_WAIT_SECONDS", 0)
        database = open_empty(maintain_projections=False)
        store: EventStore[Any] = EventStore(database.engine, on_append=FailsOnce(monkeypatch))
        own_handler(Calls(lambda record: store.append_all([renamed(record.levelname)])))

        store.append_all([renamed("own")])

        # Two waits and a retry. The appends of the handler waited too, which is not logged again.
        assert names(store) == ["own", "WARNING", "WARNING", "WARNING"]
        store.close()

    def test_while_a_migration_logs(
        self, lasting_url: URL, tmp_path: Path, own_handler: Callable[[logging.Handler], None]
    ) -> None:
        """The records come before and after the migration, in which a handler could not open its database."""

        def store(record: logging.LogRecord) -> None:
            with Database.open(url=lasting_url, maintain_projections=False) as database:
                database.events.append_all([renamed(record.name)])

        own_handler(Calls(store))
        with Database.open(url=lasting_url, maintain_projections=False) as database:
            assert set(names(database.events)) == {"peon.migrations"}

    def test_while_projections_log(self, open_empty: Opener, own_handler: Callable[[logging.Handler], None]) -> None:
        database = open_empty()
        alone = Database(database.engine, maintain_projections=False).events
        append_alone(database, *SCENE)
        own_handler(Calls(lambda record: alone.append_all([renamed(record.name)])))
        database.projections.catch_up()
        database.projections.rebuild()
        alone.close()
        assert database.events.last_sequence() >= len(SCENE) + 4


class TestAHandlerThatRaises:
    def test_does_not_fail_an_append(
        self,
        open_empty: Opener,
        monkeypatch: pytest.MonkeyPatch,
        own_handler: Callable[[logging.Handler], None],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(_: logging.LogRecord) -> None:
            raise RuntimeError("the handler fails")

        monkeypatch.setattr(transactions, "LONG_WAIT_SECONDS", 0)
        database = open_empty(maintain_projections=False)
        own_handler(Calls(fail))

        assert len(database.events.append_all([renamed()])) == 1
        assert "the handler fails" in capsys.readouterr().err

    def test_leaves_later_records_alone(
        self, own_handler: Callable[[logging.Handler], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        errors = iter([RuntimeError()])

        def fail_once(_: logging.LogRecord) -> None:
            for error in errors:
                raise error

        own_handler(Calls(fail_once))
        for number in range(2):
            report(INDEX, logging.INFO, "%(number)d", number=number)
        assert found(caplog, "peon.index")[-1].getMessage() == "1"


def test_all_records_use_the_documented_loggers() -> None:
    package = Path(str(peon.persistence.__file__)).parent
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [path.name for path, source in sources.items() if "getLogger" in source] == ["log_records.py"]
    page = package.parents[2] / "docs" / "reference" / "logging.md"
    if page.is_file():
        declared = re.findall(r'getLogger\("(peon\.\w+)"\)', sources[package / "runtime" / "log_records.py"])
        assert sorted(set(re.findall(r"^## `(peon\.\w+)`$", page.read_text("utf-8"), re.MULTILINE))) == declared
