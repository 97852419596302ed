"""A private PostgreSQL server that a test may stop; it uses the installed binaries."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Literal

from sqlalchemy import URL

PATIENCE = 180
"""After this many seconds, a command is considered to hang."""

FIRST_PORT = 10_000
FIRST_EPHEMERAL_PORT = 32_768
"""Linux gives ports from here on to connections. A client that tries again and again to reach a server that was killed
would be given the server's own port sooner or later, and be connected to itself."""


def binaries() -> Path | None:
    """Returns the folder of `initdb` and `pg_ctl`, which is rarely on `PATH`, or `None` if they are not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (command := shutil.which("pg_config")) is not None:
        told = subprocess.run([command, "--bindir"], capture_output=True, text=True, check=True)
        folders.insert(0, Path(told.stdout.strip()))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class PrivateServer:
    """A server whose data is in a folder that every user can enter.

    Attributes:
        url: The address of its database, for the superuser.
    """

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        *,
        port: int | None = None,
        settings: Sequence[str] = (),
        primary: "PrivateServer | None" = None,
    ) -> None:
        """Creates and starts the server: a new one, or a standby of `primary` that streams from it."""
        self._binaries = binaries
        self._data = folder / "data"
        self._log = folder / "log"
        # A server refuses to run as root.
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user, -1)
        self._port = free_port() if port is None else port
        if primary is None:
            self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
        else:
            primary.copy_to(self._data, "--write-recovery-conf")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = '127.0.0.1'\nport = {self._port}\nunix_socket_directories = ''\n"
                "fsync = off  # the machine itself does not crash\n"
            )
        self.configure(*settings)
        self.url = URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=self._port, database="postgres")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "start", "--wait", f"--log={self._log}")

    def configure(self, *settings: str) -> None:
        """Adds lines to the configuration, which the next start reads."""
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{setting}\n" for setting in settings)

    def base_backup(self, name: str) -> Path:
        """Copies the data of the running server to a folder beside it, and returns the folder."""
        folder = self._data.with_name(name)
        self.copy_to(folder)
        return folder

    def copy_to(self, data: Path, *options: str) -> None:
        """Copies the data of the running server to a folder that does not exist."""
        address = ["--host=127.0.0.1", f"--port={self._port}", "--username=postgres"]
        self._run("pg_basebackup", *address, "--checkpoint=fast", "--no-sync", *options, data=data)

    def use(self, data: Path) -> None:
        """Lets the next start use another folder of data."""
        self._data = data

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Restarts the server and returns when it accepts connections; mode `immediate` ends it like a crash."""
        self._run("pg_ctl", "restart", "--wait", f"--mode={mode}", f"--log={self._log}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def promote(self) -> None:
        """Makes a standby a primary, and returns when it accepts writes."""
        self._run("pg_ctl", "promote", "--wait")

    def kill(self) -> None:
        """Kills all processes of the server at once, and returns when they are gone."""
        lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
        main = int(lines[0])
        os.kill(main, signal.SIGSTOP)  # it would start no process between the look and the end
        processes = [main, *_children(main)]
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while any(map(_is_running, processes)):
            assert time.monotonic() < deadline, "the server does not end"
            time.sleep(0.01)
        # The next start in this folder would remove it, but there is none.
        if (command := shutil.which("ipcrm")) is not None:
            subprocess.run([command, "-m", lines[6].split()[1]], capture_output=True, check=False)

    def _run(self, command: str, *arguments: str, data: Path | None = None) -> None:
        options: dict[str, Any] = {} if self._user is None else {"user": self._user, "extra_groups": []}
        # No pipes: the server would keep them open.
        subprocess.run(
            [self._binaries / command, *arguments, f"--pgdata={data or self._data}"],
            stdout=subprocess.DEVNULL,
            cwd=self._data.parent,
            check=True,
            timeout=PATIENCE,
            env={**os.environ, "PGCTLTIMEOUT": str(PATIENCE)},
            **options,
        )


def free_port() -> int:
    """Returns a port that is free now, and that Linux gives to no outgoing connection."""
    for port in Random().sample(range(FIRST_PORT, FIRST_EPHEMERAL_PORT), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def _children(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name of a program, in parentheses, can contain spaces.
            if status.read_text().rpartition(")")[2].split()[1] == str(process):
                found.append(int(status.parent.name))
    return found


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
