"""Commands in processes that have imported Peon's modules already, which takes a new interpreter 0.7 s."""

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from alembic.config import CommandLine
from helpers.processes import PATIENCE, context


def run_alembic(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `alembic` in a folder, with the environment of this process."""
    return _run(_alembic, folder, os.environ, arguments)


def run_script(
    script: Path, *arguments: str | Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return _run(_script, Path.cwd(), environment, [str(script), *map(str, arguments)])


def _run(
    command: Callable[..., None], folder: Path, environment: Mapping[str, str], arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as name:
        output, errors = Path(name, "output"), Path(name, "errors")
        process = context.Process(
            target=_prepare, args=(folder, dict(environment), output, errors, command, list(arguments))
        )
        process.start()
        try:
            process.join(PATIENCE)
            assert process.exitcode is not None, f"{arguments} hangs"
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            arguments, process.exitcode, output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")
        )


def _prepare(
    folder: Path,
    environment: dict[str, str],
    output: Path,
    errors: Path,
    command: Callable[..., None],
    arguments: list[str],
) -> None:
    for path, descriptor in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    command(arguments)


def _alembic(arguments: list[str]) -> None:
    CommandLine("alembic").main(arguments)


def _script(arguments: list[str]) -> None:
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
