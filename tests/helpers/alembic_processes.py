"""The `alembic` command in a process that has imported its modules already, which takes a new interpreter 0.7 s."""

import os
import subprocess
import tempfile
from pathlib import Path

from alembic.config import CommandLine
from helpers.processes import PATIENCE, context


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder, with the environment of this process."""
    with tempfile.TemporaryDirectory() as name:
        output, errors = Path(name, "output"), Path(name, "errors")
        process = context.Process(target=_command, args=(folder, dict(os.environ), output, errors, arguments))
        process.start()
        try:
            process.join(PATIENCE)
            assert process.exitcode is not None, f"alembic {arguments} hangs"
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            arguments, process.exitcode, output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")
        )


def _command(folder: Path, environment: dict[str, str], output: Path, errors: Path, arguments: list[str]) -> None:
    for path, descriptor in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    CommandLine("alembic").main(list(arguments))
