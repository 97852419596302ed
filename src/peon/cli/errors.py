"""What the command says when something goes wrong, and with which code it ends."""

from enum import IntEnum

from peon.config import ConfigError
from peon.persistence.errors import (
    PersistenceError,
    PositionBeyondEnd,
    ProjectionsTooNew,
    SchemaError,
    SchemaOutOfDate,
    SettingError,
    StoreUnavailable,
)


class ExitCode(IntEnum):
    """The exit codes of the command.

    Attributes:
        FINE: Everything that was asked for is done.
        FAILED: A check failed, a confirmation was declined, or the command itself has failed.
        USAGE: The arguments or the configuration are wrong, or what they name cannot be used, such as a target that is
            not empty or a backup that does not exist. Nothing was done.
        UNAVAILABLE: The database does not exist, is at another revision, or cannot be used now.
        INTERRUPTED: Ctrl-C ended the command; it says what was done.
    """

    FINE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTERRUPTED = 130


class CommandFailed(Exception):  # noqa: N818 - it carries the exit code of a command, it is not always an error
    """Ends a command with a sentence on standard error.

    Args:
        message: What happened, to which thing, and what to do.
        code: The exit code.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: Exception) -> ExitCode:
    """Returns the exit code of an error that a command has raised."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, StoreUnavailable | SchemaError):
        return ExitCode.UNAVAILABLE
    if isinstance(error, ConfigError | PositionBeyondEnd | SettingError) or type(error) is PersistenceError:
        return ExitCode.USAGE
    return ExitCode.FAILED


def message_of(error: Exception, address: str) -> str:
    """Returns the sentence that explains an error.

    Args:
        address: The options with which the command was told its database; empty if it is the configured one.
    """
    if isinstance(error, SchemaOutOfDate):
        return (
            f"{error.database} is at revision {error.revision or 'base'}; this version of peon needs {error.head}: "
            f"run  peon migrate{address}"
        )
    if isinstance(error, ProjectionsTooNew):
        return (
            f"projection {error.projection} was built by its version {error.found}, and this version of the code is "
            f"{error.expected}: run the newer one, or go back on purpose with  peon rebuild --replace-newer{address}"
        )
    if isinstance(error, CommandFailed | PersistenceError | ConfigError):
        return str(error)
    # Its text may hold a payload.
    return f"peon itself has failed with {type(error).__name__}: run the command again with --debug to see where"
