"""The commands `peon` and `alembic` for a shell, in processes that have imported Peon already.

The documentation starts them about a hundred times, and a new interpreter takes most of a second to import everything.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from helpers.processes import PATIENCE, context

PROGRAM = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    code = server.recv(1)
sys.exit(code[0] if code else "the command was killed")
"""


@contextmanager
def warm_commands() -> Iterator[Path]:
    """Yields a folder with the two programs. Signals do not reach the commands."""
    with tempfile.TemporaryDirectory() as name:
        address = str(Path(name, "server"))
        listening = context.Event()
        server = context.Process(target=_serve, args=(address, listening), daemon=True)
        server.start()
        try:
            assert listening.wait(PATIENCE)
            programs = Path(name, "programs")
            programs.mkdir()
            for program in ("peon", "alembic"):
                (programs / program).write_text(PROGRAM.format(python=sys.executable, address=address))
                (programs / program).chmod(0o700)
            yield programs
        finally:
            server.kill()
            server.join()


def _serve(address: str, listening: Any) -> None:
    import peon.cli.application  # noqa: F401

    tests = Path(__file__).parents[1]
    sys.path[:] = [folder for folder in sys.path if Path(folder) not in (tests, tests.parent / "examples")]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        listening.set()
        while True:
            shell, _ = server.accept()
            if not os.fork():
                _answer(shell)
            shell.close()


def _answer(shell: socket.socket) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request, descriptors, _, _ = socket.recv_fds(shell, 1 << 20, 3)
        while more := shell.recv(1 << 20):
            request += more
        name, arguments, folder, environment = json.loads(request)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [name, *arguments]
        sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        code = _exit_code_of(_main_of(name))
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):  # the reader of a pipe may have ended
            sys.stdout.flush()
        shell.sendall(bytes([code]))
        os._exit(0)


def _main_of(name: str) -> Callable[[], None]:
    if name == "peon":
        from peon.cli import main

        return main
    from alembic.config import main as alembic

    return alembic


def _exit_code_of(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
