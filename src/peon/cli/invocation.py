"""One run of a command: the options that all commands have, its database, and what it shows."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from pydantic import BaseModel
from sqlalchemy import Engine

from peon.cli.errors import CommandFailed, ExitCode, code_of, message_of
from peon.config import AppConfig
from peon.persistence import migrations
from peon.persistence.backends import backend_of
from peon.persistence.backends.address import parse_url
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.errors import PersistenceError, SchemaError, StoreUnavailable
from peon.persistence.operations.reading import engine_for_reading, opened_for_reading

# Rich and the parts of a database are loaded when they are used: a health probe needs neither.
if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from peon.cli.progress import Report
    from peon.persistence import Database

WIDTH_OF_PIPES = 240
"""Columns of tables that are not shown on a terminal. Rich would assume 80, and cut values."""


@dataclass
class Invocation:
    """One run of a command.

    Attributes:
        url: The option `--url`.
        data_dir: The option `--data-dir`.
        json: The option `--json`: show one machine-readable document instead of tables.
        debug: The option `--debug`: show where an error was raised.
        when_interrupted: What Ctrl-C leaves behind at this moment, as a sentence.
    """

    url: str | None = None
    data_dir: Path | None = None
    json: bool = False
    debug: bool = False
    when_interrupted: str = "Nothing was changed."
    _report: "Report | None" = field(default=None, repr=False)

    @property
    def config(self) -> AppConfig:
        """The configuration, with the database that the options name.

        Raises:
            ConfigError: The configuration is wrong.
        """
        if self.url is not None:
            return AppConfig(database={"url": self.url})
        if self.data_dir is not None:
            return AppConfig(general={"data_dir": self.data_dir}, database={"url": None})
        return AppConfig()

    @property
    def address(self) -> str:
        """The options that name the same database again, for a command that a message shows; without a password."""
        if self.url is not None:
            with suppress(PersistenceError):
                return f" --url {shlex.quote(parse_url(self.url).render_as_string(hide_password=True))}"
            return ""
        return "" if self.data_dir is None else f" --data-dir {shlex.quote(str(self.data_dir))}"

    # Databases

    @contextmanager
    def reading(self, *, temporary_tables: bool = False) -> Iterator["Database"]:
        """Yields the database for a command that only reads. See `opened_for_reading`.

        If a statement fails and the database is at another revision, the error says so.
        """
        with (
            opened_for_reading(self.config, temporary_tables=temporary_tables) as database,
            self._explained_revision(database.engine),
        ):
            yield database

    @contextmanager
    def reading_engine(self) -> Iterator[Engine]:
        """Like `reading`, but yields only the engine, which takes a third of the time to load."""
        engine = engine_for_reading(self.config)
        try:
            with self._explained_revision(engine):
                yield engine
        finally:
            engine.dispose()

    @contextmanager
    def _explained_revision(self, engine: Engine) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            self._explain_revision(error, engine)
            raise

    def _explain_revision(self, error: StoreUnavailable, engine: Engine) -> None:
        """Raises an error that names the revision of the database, unless it is the newest one."""
        newest = migrations.revisions()[-1]
        try:
            with DriverErrors(engine), backend_of(engine).consistent_reads(engine).begin() as connection:
                revision = migrations.known_revision(connection)
        except SchemaError as unknown:
            raise CommandFailed(f"{error}; {unknown}", ExitCode.UNAVAILABLE) from error
        except PersistenceError:
            return
        if revision != newest:
            behind = f"it is at revision {revision or 'base'}, and this command needs {newest}"
            advice = f"run  peon migrate{self.address}"
            raise CommandFailed(f"{error}; {behind}: {advice}", ExitCode.UNAVAILABLE) from error

    @contextmanager
    def writing(self) -> Iterator["Database"]:
        """Yields the database at the newest revision; it is neither migrated nor caught up.

        Raises:
            SchemaOutOfDate: It is at an older revision, or there is no database.
        """
        from peon.persistence import Database

        with Database.open(self.config, migrate=False, maintain_projections=False) as database:
            yield database

    # Output

    def show(self, document: BaseModel, *people: "RenderableType") -> None:
        """Shows the result of the command: the document with `--json`, otherwise what people read."""
        if self.json:
            # ASCII only: text may hold half a surrogate pair, which no encoding of a terminal has.
            sys.stdout.write(json.dumps(document.model_dump(mode="json"), indent=2) + "\n")
            return
        self.print(*people)

    def show_sentences(self, document: BaseModel, *sentences: str) -> None:
        """Like `show`, for sentences, which the terminal wraps: a path that was cut could not be copied."""
        if self.json:
            self.show(document)
            return
        from rich.text import Text

        for sentence in sentences:
            self.print_line(Text(sentence))

    def show_line(self, document: BaseModel) -> None:
        """Shows one of many documents, in a line of its own."""
        sys.stdout.write(json.dumps(document.model_dump(mode="json")) + "\n")
        sys.stdout.flush()  # a reader of a pipe wants it now

    def print(self, *people: "RenderableType") -> None:
        """Shows text and tables to people. Text is not taken for markup."""
        for renderable in people:
            self._people.print(renderable)

    def print_line(self, line: "Text") -> None:
        """Shows one line to people, and leaves it to the terminal to wrap it."""
        if self._people.is_terminal:
            self._people.print(line, soft_wrap=True)
        else:
            sys.stdout.write(f"{line.plain}\n")  # a tenth of the time

    @cached_property
    def _people(self) -> "Console":
        return console_on(sys.stdout)

    def note(self, sentence: str) -> None:
        """Says something beside the result, on standard error."""
        typer.echo(sentence, err=True)

    @contextmanager
    def progress(self, what: str, unit: str = "events", *, when_interrupted: str | None = None) -> Iterator["Report"]:
        """Shows a bar with a rate and an estimate. Yields the function that moves it: it takes numbers of things.

        Nothing is shown if standard error is not a terminal.

        Args:
            what: What is being done, such as "Rebuilding".
            unit: What is counted.
            when_interrupted: What Ctrl-C leaves behind, as a sentence.
        """
        from peon.cli.progress import reported

        if when_interrupted is not None:
            self.when_interrupted = when_interrupted
        with reported(console_on(sys.stderr), what, unit) as self._report:
            yield self._report

    # Consent

    def confirm(self, question: str, *, yes: bool) -> None:
        """Asks before something is destroyed.

        Args:
            question: What will happen, as a question.
            yes: The option `--yes`: do not ask.

        Raises:
            CommandFailed: The answer is no, or nobody can answer.
        """
        if yes:
            return
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            self.note("")  # ends the line of the question
            raise CommandFailed(
                "nothing was changed, because there was no answer; --yes agrees without asking"
            ) from None
        if not agreed:
            raise CommandFailed("nothing was changed")

    # Errors

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Ends the command with a sentence and an exit code instead of a traceback."""
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # as in  peon events | head
            _discard_output()
            raise typer.Exit(ExitCode.FINE) from None
        except KeyboardInterrupt:
            self._say_interrupted()
        except Exception as error:
            if _was_interrupted(error):
                self._say_interrupted()
            if self.debug:
                traceback.print_exception(error)
            self.note(f"peon: {message_of(error, self.address)}")
            raise typer.Exit(code_of(error)) from None

    def _say_interrupted(self) -> NoReturn:
        done = self._report.sentence if self._report is not None else ""
        self.note(f"peon: interrupted{done}. {self.when_interrupted}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _was_interrupted(error: BaseException | None) -> bool:
    """Returns whether an error came of Ctrl-C: cleaning up after it may fail, as on a connection to a server."""
    passed: set[int] = set()
    while error is not None and id(error) not in passed:
        if isinstance(error, KeyboardInterrupt):
            return True
        passed.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def console_on(stream: object) -> "Console":
    """Returns a console that does not interpret the text it is given. Rich itself obeys NO_COLOR."""
    from rich.console import Console

    console = Console(file=stream, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_PIPES
    return console


def _discard_output() -> None:
    """Lets Python's last flush go nowhere; it would report the closed pipe once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # there is no descriptor behind it
        return
