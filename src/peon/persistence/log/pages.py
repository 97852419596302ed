"""Reads the rows of the log page by page."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, Select, bindparam, func, select
from sqlalchemy.sql.compiler import SQLCompiler

from peon.persistence.backends import backend_of
from peon.persistence.backends.compiled import MAXIMUM_KEYS
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.log.query import key_of
from peon.persistence.runtime.sqlalchemy_internals import expand_parameters
from peon.persistence.schema import MAXIMUM_SEQUENCE, events

PAGE_EVENTS = 1_000
"""Rows in a page. With smaller pages, the time of the query itself begins to count."""

PAGE_CHARACTERS = 4_000_000
"""Payload text after which a page ends early, so that large events do not fill the memory."""

FETCHED_EVENTS = 20
"""Rows that are fetched between two checks of `PAGE_CHARACTERS`."""

LogRow = tuple[int, str, str, str]
"""sequence, event_type, payload, stored_at. In a damaged file, any of the last three may be bytes or `None`."""

Pages = Callable[[int, int | None], Iterator[list[LogRow]]]
"""Yields the rows above a sequence, up to a limit. See `LogPages.read`."""

_ROW = (events.c.sequence, events.c.event_type, events.c.payload, events.c.stored_at)


class LogPages:
    """Reads the log of `engine`.

    Args:
        event_types: Read only events that are stored under these names.
        newest_first: Read all pages, and all rows in them, backwards.
    """

    def __init__(
        self,
        engine: Engine,
        driver_errors: DriverErrors,
        event_types: Collection[str] | None = None,
        *,
        newest_first: bool = False,
    ) -> None:
        self._driver_errors = driver_errors
        self._backend = backend_of(engine)
        self._engine = self._backend.single_reads(engine)
        self._newest_first = newest_first
        self._sought: frozenset[str] | None = None
        self._names: list[str] | None = None
        if event_types is not None and _is_short_list(event_types):
            self._names = list(event_types)
        elif event_types is not None:
            self._sought = frozenset(event_types)

    # Both are executed as text. After a page of decoding, SQLAlchemy's code that prepares a Core statement is no longer
    # in the processor's cache, and would take a twentieth of the whole replay. They are compiled when they are needed:
    # a database has eight of these objects, and most programs use two.

    @cached_property
    def _page(self) -> SQLCompiler:
        order = _order(events.c.sequence, self._newest_first)
        page = select(*_ROW).where(events.c.sequence > bindparam("after")).order_by(order)
        if self._newest_first:
            page = page.where(events.c.sequence < bindparam("before"))
        if self._names is not None:
            page = page.where(events.c.event_type.in_(self._names))
        page = page.limit(bindparam("rows"))
        if not self._backend.fetches_rows_one_by_one(self._engine):
            page = _cut_to_size(page, self._backend.text_size, self._newest_first)
        return page.compile(self._engine)

    @cached_property
    def _some(self) -> SQLCompiler:
        some = select(*_ROW).where(events.c.sequence.in_(bindparam("sequences", expanding=True)))
        return some.order_by(_order(events.c.sequence, self._newest_first)).compile(self._engine)

    def read(self, after: int, limit: int | None, before: int = MAXIMUM_SEQUENCE) -> Iterator[list[LogRow]]:
        """Yields the rows above a sequence, at most `limit` of them, until it finds no more.

        Between two pages it holds neither a transaction nor a connection.

        Args:
            before: Newest first, only rows below this sequence.
        """
        remaining = limit
        while remaining is None or remaining > 0:
            rows = PAGE_EVENTS if remaining is None else min(PAGE_EVENTS, remaining)
            with self._driver_errors, self._engine.connect() as connection:
                page = self._run(connection, self._page, self._parameters(after, before, rows))
            # A short page is not the end: events may have been stored since it was read.
            if not page:
                return
            if self._newest_first:
                before = page[-1][0]
            else:
                after = page[-1][0]
            if self._sought is not None:
                page = [row for row in page if row[1] in self._sought]
            if remaining is not None:
                remaining -= len(page)
            if page:
                yield page

    def read_page(self, connection: Connection, after: int, before: int = MAXIMUM_SEQUENCE) -> list[LogRow]:
        """Returns the page above a sequence in the transaction of `connection`; it is empty at the end of the log.

        Newest first, it is the page below `before`.
        """
        return self._run(connection, self._page, self._parameters(after, before, PAGE_EVENTS))

    def read_range(self, connection: Connection, first: int, count: int) -> list[LogRow]:
        """Returns the rows with `count` sequences from `first` on, without those that were removed by hand."""
        rows: list[LogRow] = []
        after, last = first - 1, first - 1 + count
        while after < last and (page := self.read_page(connection, after)):
            rows += [row for row in page if row[0] <= last]
            after = page[-1][0]
        return rows

    def read_rows(self, connection: Connection, sequences: Sequence[int]) -> list[LogRow]:
        """Returns the rows with the given sequences, in order."""
        return self._run(connection, self._some, {"sequences": sequences}) if sequences else []

    def _parameters(self, after: int, before: int, rows: int) -> dict[str, int]:
        bounds = {"after": after, "before": before} if self._newest_first else {"after": after}
        return {**bounds, "rows": rows}

    def _run(self, connection: Connection, compiled: SQLCompiler, parameters: dict[str, Any]) -> list[LogRow]:
        query = expand_parameters(compiled, parameters)
        values = tuple(query.positional_parameters) if compiled.positional else query.parameters
        try:
            return _fetch(connection.exec_driver_sql(query.statement, values))
        except Exception as error:
            if not self._backend.is_damaged_text(error):
                raise
        with self._backend.text_decoded_by(connection, _escape_invalid):
            return _fetch(connection.exec_driver_sql(query.statement, values))


def _order(sequence: ColumnElement[int], newest_first: bool) -> ColumnElement[int]:
    return sequence.desc() if newest_first else sequence


def _is_short_list(event_types: Collection[str]) -> bool:
    """Returns whether a statement can have the names as parameters. They are compared in Python otherwise."""
    return len(event_types) <= MAXIMUM_KEYS and all(key_of(name) == name for name in event_types)


def _cut_to_size(
    page: Select[Any], length: Callable[[ColumnElement[Any]], ColumnElement[int]], newest_first: bool
) -> Select[Any]:
    """Makes the database end a page at `PAGE_CHARACTERS`, after its first row at the earliest."""
    rows = page.subquery()
    size = func.coalesce(length(rows.c.payload), 0)
    before = func.sum(size).over(order_by=_order(rows.c.sequence, newest_first), rows=(None, -1))
    sized = select(rows, func.coalesce(before, 0).label("before")).subquery()
    columns = [sized.c[column.name] for column in _ROW]
    return select(*columns).where(sized.c.before <= PAGE_CHARACTERS).order_by(_order(sized.c.sequence, newest_first))


def _fetch(result: CursorResult[Any]) -> list[LogRow]:
    with result:
        return _rows_of(result.cursor)  # a function of its own: see ThreadWriter


def _rows_of(cursor: Any) -> list[LogRow]:
    page: list[LogRow] = []
    characters = 0
    # From the driver's cursor: building SQLAlchemy's rows would take a tenth of the whole replay.
    while rows := cursor.fetchmany(FETCHED_EVENTS):
        page += rows
        characters += sum([len(payload or "") for _, _, payload, _ in rows])
        if characters > PAGE_CHARACTERS:
            break
    return page


def _escape_invalid(raw: bytes) -> str:
    r"""Returns bytes that are not UTF-8 as \xNN, which no JSON contains: their row cannot be decoded, others can."""
    return raw.decode(errors="backslashreplace")
