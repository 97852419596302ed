"""The command `peon`, for operators of a database. It needs the extra `cli`."""

import sys
from importlib.util import find_spec
from io import TextIOWrapper

USAGE_ERROR = 2


def main() -> None:
    """Runs the command with the arguments of this process, and ends the process.

    The exit codes are those of `peon.cli.errors.ExitCode`.
    """
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"the command peon needs {' and '.join(missing)}: install peon with its extra 'cli', "
            "for example with  pip install 'peon[cli]'\n"
        )
        sys.exit(USAGE_ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # otherwise it is not a file
            stream.reconfigure(errors="backslashreplace")  # the terminal may not have all characters
    from peon.cli.application import application

    application(prog_name="peon")
