"""Backups of PostgreSQL: what `pg_dump` writes and `pg_restore` reads."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors, database_name
from peon.persistence.backends.version_table import version_table_of
from peon.persistence.errors import DamagedFile, PersistenceError
from peon.persistence.operations.backups.contents import Contents
from peon.persistence.runtime.new_files import private_file_beside
from peon.persistence.schema import events, subscription_positions

PARAMETERS = (
    *("host", "port", "dbname", "user", "options", "target_session_attrs", "connect_timeout"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile"),
)
"""What the programs are told of a connection. Their libpq may be older than the driver's, and refuse other names."""

_COPY = re.compile(rb'COPY (?:"(?:[^"]|"")*"|[^."]+)\."?(\w+)"? \(([^)]*)\) FROM stdin;\n')

_SCHEMA_OF_TABLE = re.compile(r"^\d+; \d+ \d+ TABLE (?!DATA )(.+) events [^ ]+$", re.MULTILINE)
"""A line of `pg_restore --list`. Names are not quoted there."""


_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


class Dump(NamedTuple):
    """What a file of `pg_dump` holds."""

    schema: str
    contents: Contents


class Programs:
    """The programs of PostgreSQL, connected as an engine is.

    Raises:
        PersistenceError: They are not installed.
        StoreUnavailable: The database is not reachable.
    """

    def __init__(self, engine: Engine) -> None:
        self._database = database_name(engine)
        self._version_table = version_table_of(engine)
        self._dump = _installed("pg_dump")
        self._restore = _installed("pg_restore")
        from psycopg.conninfo import make_conninfo  # installed, since there is an engine of PostgreSQL

        with DriverErrors(engine), engine.connect() as connection:
            self.schema = str(backend_of(connection).schema_for_new_tables(connection))
            driver: Any = connection.connection.driver_connection
            known = driver.info.get_parameters()
            parameters = {name: known[name] for name in PARAMETERS if name in known}
            password = driver.info.password
        # Among the arguments, other users of the machine could see it.
        self._environment = os.environ | ({"PGPASSWORD": password} if password else {})
        self._address = f"--dbname={make_conninfo('', **parameters)}"

    def dump(self, file: Path) -> None:
        """Writes the schema of the log to a file, which has one state of the database."""
        options = ["--format=custom", f"--schema={_quoted(self.schema)}", f"--file={file}"]
        self._change([self._dump, self._address, *options])

    def contents_of_dump(self, file: Path) -> Dump:
        """Reads the whole file.

        Raises:
            DamagedFile: It is damaged.
        PersistenceError: It is not a backup of peon.
        """
        try:
            return self._contents_of_dump(file)
        except _ProgramFailed as error:
            raise DamagedFile(f"{file} is damaged, or not a file of pg_dump: {error}: use another backup") from error

    def _contents_of_dump(self, file: Path) -> Dump:
        listed = self._list(file)
        schemas = _SCHEMA_OF_TABLE.findall(listed)
        if len(schemas) != 1:
            raise PersistenceError(f"{file} has no table events, so it is not a backup of peon: name another file")
        command = [self._restore, "--data-only", "--file=-", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
            contents = _contents(process.stdout or (), self._version_table)
            errors = process.stderr.read() if process.stderr else b""
        if process.returncode:
            raise _ProgramFailed(command, errors)
        return Dump(schemas[0], contents)

    def restore(self, file: Path) -> None:
        """Creates what the file has, in one transaction. The schema exists, and is empty."""
        listed = [line for line in self._list(file).splitlines() if not re.search(r"^\d+; \d+ \d+ SCHEMA ", line)]
        with private_file_beside(file) as list_file:
            list_file.write_text("\n".join(listed))
            # As owner, the role of the connection: that of the backup may not exist here.
            options = ["--no-owner", "--single-transaction", "--exit-on-error", f"--use-list={list_file}"]
            self._change([self._restore, self._address, *options, str(file)])

    def _list(self, file: Path) -> str:
        return self._run([self._restore, "--list", str(file)])

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(command, env=self._environment, capture_output=True, check=False)  # noqa: S603
        if done.returncode:
            raise _ProgramFailed(command, done.stderr)
        return done.stdout.decode(errors="replace")

    def _change(self, command: Sequence[str]) -> None:
        try:
            self._run(command)
        except _ProgramFailed as error:
            raise PersistenceError(f"{self._database}: {error}") from error


class _ProgramFailed(Exception):  # noqa: N818
    """Has only the line of the error: what follows it may show a row."""

    def __init__(self, command: Sequence[str], errors: bytes) -> None:
        lines = [line for line in errors.decode(errors="replace").splitlines() if "error:" in line]
        super().__init__(lines[0] if lines else f"{Path(command[0]).name} has failed")


def _contents(lines: Iterable[bytes], version_table: str) -> Contents:
    """Counts the rows in what `pg_restore` prints."""
    count = last = 0
    revision = None
    positions = {}
    table, columns = "", [b""]
    for line in lines:
        if not table:
            if (copy := _COPY.fullmatch(line)) is not None:
                table, columns = copy[1].decode(), copy[2].split(b", ")
        elif line == b"\\.\n":
            table = ""
        elif table == events.name:
            count += 1
            last = max(last, int(line.partition(b"\t")[0]))
        elif table == version_table:
            revision = line.strip().decode()
        elif table == subscription_positions.name:
            row = dict(zip(columns, line.rstrip(b"\n").split(b"\t"), strict=True))
            positions[_unescaped(row[b"name"])] = int(row[b"sequence"])
    return Contents(revision, count, last, positions)


def _unescaped(value: bytes) -> str:
    return re.sub(rb"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), value).decode()


def _installed(program: str) -> str:
    if (path := shutil.which(program)) is None:
        raise PersistenceError(
            f"{program} is not installed, or not on PATH: install the client programs of PostgreSQL, of the version of "
            "the server or newer"
        )
    return path


def _quoted(schema: str) -> str:
    """Returns a pattern of `pg_dump` that only matches this name."""
    return '"' + schema.replace('"', '""') + '"'
