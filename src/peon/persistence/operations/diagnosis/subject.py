"""The database that is examined."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sqlalchemy import Connection, inspect

from peon.persistence import migrations
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import is_file
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.interface import Backend
from peon.persistence.database import Database
from peon.persistence.errors import SchemaError
from peon.persistence.projections import Progress
from peon.persistence.schema import LAST_SEQUENCE


def _ignore(done: int, total: int) -> None:
    pass


@dataclass
class Subject:
    """The database that is examined, and what all checks need to know of it.

    Attributes:
        database: See `opened_for_reading`.
        options: The options of the command `peon` that name this database, for the commands in advice.
        report: Takes the number of things that the present check has done and has to do.
    """

    database: Database
    options: str = ""
    report: Progress = field(default=_ignore)

    @property
    def backend(self) -> Backend:
        return backend_of(self.database.engine)

    @cached_property
    def file(self) -> Path | None:
        """The SQLite file; `None` for a server, and for an SQLite URI."""
        url = self.database.engine.url
        return Path(str(url.database)) if is_file(url) else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yields a connection in a transaction of its own, so that a failed check leaves no trace in the next one."""
        with DriverErrors(self.database.engine), self.database.read_transaction() as connection:
            yield connection

    @cached_property
    def tables(self) -> frozenset[str]:
        """The names of all tables in the schema of the log."""
        with self.reading() as connection:
            schema = self.backend.schema_for_new_tables(connection)
            return frozenset(inspect(connection).get_table_names(schema=schema))

    @cached_property
    def revision(self) -> str | None:
        """The revision; `None` if there is none, or not exactly one."""
        try:
            with self.reading() as connection:
                return migrations.current_revision(connection)
        except SchemaError:
            return None

    @property
    def is_newest(self) -> bool:
        return self.revision == migrations.revisions()[-1]

    @cached_property
    def end(self) -> int:
        """The sequence of the last event."""
        with self.reading() as connection:
            last: int = connection.scalars(LAST_SEQUENCE).one()
            return last

    def peon(self, command: str) -> str:
        """Returns a command line of `peon` for this database."""
        return f"peon {command}{self.options}"

    def sqlite3(self, statement: str) -> str:
        """Returns a command line that runs a statement on the SQLite file."""
        return f'sqlite3 {shlex.quote(str(self.file or "FILE"))} "{statement}"'
