"""Helpers for the tests of applications: given/when/then for projections, and a suite that a projection inherits.

The fixtures, such as `peon_database`, are in the pytest plugin `pytest_peon`, which pytest loads by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import sqlalchemy
from sqlalchemy import URL, Connection, Table, insert, make_url, select, text

from peon.persistence import Database, EventCodec, EventStore, Projection, ProjectionError
from peon.persistence.schema import events as events_table

try:
    import pytest
except ImportError as error:
    raise ImportError("peon.testing needs pytest, which is not installed: pip install 'peon[testing]'") from error

__all__ = ["ProjectionSuite", "Scenario", "given", "temporary_schema"]

ResultT = TypeVar("ResultT")


class Scenario:
    """What `given` returns: a database whose log a test extends, and whose projected rows it compares."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database

    def when(self, events: Iterable[Any]) -> Self:
        """Appends the events, and applies them to the projections."""
        self._database.events.append_all(events)
        return self

    def when_refused(self, events: Iterable[Any], reason: str) -> Self:
        """Appends events that a projection must refuse; nothing of them is stored.

        Args:
            events: The events.
            reason: A part of the reason that the projection gives.

        Raises:
            AssertionError: No projection refused the events, or for another reason.
        """
        try:
            self._database.events.append_all(events)
        except ProjectionError as error:
            if reason not in str(error):
                raise AssertionError(f"The events were refused for another reason than {reason!r}: {error}") from error
            return self
        raise AssertionError(f"No projection refused the events; expected the reason {reason!r}.")

    def then_rows(self, table: Table, expected: Iterable[Mapping[str, Any]]) -> Self:
        """Compares all rows of a table, in any order.

        Args:
            table: The table.
            expected: The rows, all with the same keys. Only the columns that the first row names are compared.

        Raises:
            AssertionError: The rows differ. The message lists the missing and the unexpected ones.
        """
        missing = [dict(row) for row in expected]
        columns = [table.c[name] for name in missing[0]] if missing else list(table.c)
        with self._database.read_transaction() as connection:
            found = [dict(row) for row in connection.execute(select(*columns)).mappings()]
        unexpected = []
        for row in found:
            if row in missing:
                missing.remove(row)
            else:
                unexpected.append(row)
        if missing or unexpected:
            lines = [f"  missing:    {row}" for row in missing] + [f"  unexpected: {row}" for row in unexpected]
            raise AssertionError("\n".join([f"The rows of {table.name} differ:", *lines]))
        return self

    def then(self, query: Callable[[Connection], ResultT], expected: ResultT) -> Self:
        """Compares the result of a query of your own.

        Raises:
            AssertionError: It differs.
        """
        with self._database.read_transaction() as connection:
            found = query(connection)
        if found != expected:
            name = getattr(query, "__name__", "the query")
            raise AssertionError(f"{name} returned something else:\n  expected: {expected!r}\n  found:    {found!r}")
        return self


def given(database: Database[Any], events: Iterable[Any] = ()) -> Scenario:
    """Returns a scenario that begins with these events.

    Args:
        database: An open database with the projections to test, such as the fixture `peon_memory_database`.
        events: The events that happened before; they are appended in one batch.
    """
    return Scenario(database).when(events)


class ProjectionSuite:
    """Tests that each projection must pass. Inherit it in a class whose name begins with `Test`.

    The tests run on each kind of database. See `peon_database`.

    Attributes:
        codec: Decodes the sample events; the domain's codec by default.
    """

    codec: ClassVar[EventCodec[Any] | None] = None

    def projection(self) -> Projection:
        """Returns a new instance of the projection to test. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define projection().")

    def sample_events(self) -> Sequence[Any]:
        """Returns at least two events that the projection applies and that leave rows in its tables. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define sample_events().")

    @pytest.fixture
    def peon_open_arguments(self) -> Mapping[str, Any]:
        return {"codec": self.codec, "projections": [self.projection()]}

    def test_rebuild_equals_live(self, peon_database: Database[Any]) -> None:
        live = self._append_one_by_one(peon_database)
        assert any(live.values()), "sample_events() leave no row in the tables of the projection"
        peon_database.projections.rebuild()
        assert self._rows(peon_database) == live

    def test_verify_finds_nothing(self, peon_database: Database[Any]) -> None:
        self._append_one_by_one(peon_database)
        assert peon_database.projections.problems() == []
        assert peon_database.projections.verify() == []

    def test_catch_up_equals_live(
        self, peon_database: Database[Any], peon_memory_url: URL, peon_open_arguments: Mapping[str, Any]
    ) -> None:
        with Database.open(url=peon_memory_url, **peon_open_arguments) as other:
            live = self._append_one_by_one(other)
        log = EventStore(peon_database.engine, self.codec) if self.codec else EventStore(peon_database.engine)
        log.append_all(self.sample_events())
        log.close()
        peon_database.projections.catch_up()
        assert self._rows(peon_database) == live

    def test_undecodable_rows_stop_nothing(self, peon_database: Database[Any]) -> None:
        *before, last = self.sample_events()
        undecodable = peon_database.events.append_all(before)[-1].sequence + 1
        row = {"event_type": "NoEventOfThisType", "payload": "{}", "stored_at": "2026-01-01T00:00:00.000000Z"}
        with peon_database.engine.begin() as connection:
            connection.execute(insert(events_table).values(sequence=undecodable, **row))
        if peon_database.engine.dialect.name == "postgresql":  # SQLite counts on from the highest key by itself
            with peon_database.engine.begin() as connection:
                connection.execute(text("SELECT nextval(pg_get_serial_sequence('events', 'sequence'))"))
        peon_database.projections.catch_up()
        [stored] = peon_database.events.append_all([last])
        assert peon_database.projections.position() == stored.sequence
        assert {problem.sequence for problem in peon_database.projections.problems()} == {undecodable}
        live = self._rows(peon_database)
        peon_database.projections.rebuild()
        assert self._rows(peon_database) == live

    def _append_one_by_one(self, database: Database[Any]) -> dict[str, list[Any]]:
        for event in self.sample_events():
            database.events.append_all([event])
        return self._rows(database)

    def _rows(self, database: Database[Any]) -> dict[str, list[Any]]:
        with database.read_transaction() as connection:
            return {
                table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for table in self.projection().tables
            }


@contextmanager
def temporary_schema(server: str | URL) -> Iterator[URL]:
    """Creates a PostgreSQL schema, and drops it afterwards.

    Args:
        server: The address of a database in which the user may create schemas.

    Yields:
        An address whose search path is the new schema.
    """
    url = make_url(server)
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    schema = f"peon_test_{uuid4().hex}"
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        try:
            yield url.update_query_dict({"options": f"-csearch_path={schema}"})
        finally:
            with engine.connect() as connection:
                connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    finally:
        engine.dispose()
