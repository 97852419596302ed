"""Reads the rows of the log page by page."""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager

from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.engine.interfaces import DBAPICursor

from peon.persistence.availability import DriverErrors
from peon.persistence.engine import READ_ONLY, sqlite_connection
from peon.persistence.schema import events

PAGE_EVENTS = 1_000
"""Rows that are read at once; in smaller pages the query itself begins to cost."""

PAGE_CHARACTERS = 4_000_000
"""Payload text after which a page ends early, so that large events do not fill the memory."""

FETCHED_EVENTS = 20
"""Rows between two looks at that."""

LogRow = tuple[int, str, str, str]
"""sequence, event_type, payload, stored_at; in a damaged file any of the last three may be bytes or `None`."""

_PAGE = (
    select(events.c.sequence, events.c.event_type, events.c.payload, events.c.stored_at)
    .where(events.c.sequence > bindparam("after"))
    .order_by(events.c.sequence)
    .limit(bindparam("rows"))
)


class LogPages:
    """The pages of the log of `engine`, of events of all types, or of some."""

    def __init__(self, engine: Engine, driver_errors: DriverErrors, event_types: Collection[str] | None = None) -> None:
        self._driver_errors = driver_errors
        self._engine = engine.execution_options(**{READ_ONLY: True})
        self._query = _PAGE if event_types is None else _PAGE.where(events.c.event_type.in_(list(event_types)))
        # SQLite's driver runs the text of the query: after a page of decoding SQLAlchemy's code is no longer in
        # the processor's cache, and costs a twentieth of the whole replay.
        self._compiled = self._query.compile(engine)
        self._in_sqlite = engine.dialect.name == "sqlite"

    def read(self, after: int, limit: int | None) -> Iterator[list[LogRow]]:
        """Yields the rows above a sequence, at most `limit` of them, until there are no more.

        Between two pages no transaction and no connection is held.
        """
        remaining = limit
        while remaining is None or remaining > 0:
            rows = PAGE_EVENTS if remaining is None else min(PAGE_EVENTS, remaining)
            with self._driver_errors:
                page = self._read_page({"after": after, "rows": rows})
            # Not at a short page: more may have been stored since, and must not be missed.
            if not page:
                return
            after = page[-1][0]
            if remaining is not None:
                remaining -= len(page)
            yield page

    def read_page(self, connection: Connection, after: int) -> list[LogRow]:
        """Returns the page above a sequence as the transaction of `connection` sees it; an empty one at the end."""
        parameters = {"after": after, "rows": PAGE_EVENTS}
        if self._in_sqlite:
            return self._read_from_sqlite(sqlite_connection(connection), parameters)
        with connection.execute(self._query, parameters) as result:
            return _fetch(result.cursor)

    def _read_page(self, parameters: dict[str, int]) -> list[LogRow]:
        if not self._in_sqlite:
            with self._engine.connect() as connection, connection.execute(self._query, parameters) as result:
                return _fetch(result.cursor)
        with closing(self._engine.raw_connection()) as pooled:
            driver: sqlite3.Connection = pooled.dbapi_connection  # type: ignore[assignment]
            return self._read_from_sqlite(driver, parameters)

    def _read_from_sqlite(self, driver: sqlite3.Connection, parameters: dict[str, int]) -> list[LogRow]:
        query = self._compiled.construct_expanded_state(parameters)
        try:
            return _fetch(driver.execute(query.statement, query.positional_parameters))
        except sqlite3.OperationalError as error:
            # Only errors of Python's module itself have no code: it met text that is not UTF-8.
            if hasattr(error, "sqlite_errorcode"):
                raise
        with _damaged_text_escaped(driver):
            return _fetch(driver.execute(query.statement, query.positional_parameters))


def _fetch(cursor: DBAPICursor | sqlite3.Cursor) -> list[LogRow]:
    page: list[LogRow] = []
    characters = 0
    with closing(cursor):
        while rows := cursor.fetchmany(FETCHED_EVENTS):
            page += rows
            characters += sum([len(payload or "") for _, _, payload, _ in rows])
            if characters > PAGE_CHARACTERS:
                break
    return page


@contextmanager
def _damaged_text_escaped(connection: sqlite3.Connection) -> Iterator[None]:
    r"""Reads bytes that are not UTF-8 as \xNN, which no JSON contains: such a row fails alone, not its page."""
    connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str
