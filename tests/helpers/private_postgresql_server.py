"""A PostgreSQL server of a test's own, which may be stopped: its binaries are those that are installed."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL


def binaries() -> Path | None:
    """Returns the folder of `initdb` and `pg_ctl`, which is rarely on the path; `None` if they are not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (command := shutil.which("pg_config")) is not None:
        told = subprocess.run([command, "--bindir"], capture_output=True, text=True, check=True)
        folders.insert(0, Path(told.stdout.strip()))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class PrivateServer:
    """A server in a folder, which has to be one that any user may enter.

    Attributes:
        url: Of a database of it, for its superuser.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._data = folder / "data"
        self._log = folder / "log"
        # A server refuses to run as root.
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user, -1)
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n"
                "fsync = off  # the machine itself does not crash\n"
            )
        self.url = URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=port, database="postgres")
        self._run("pg_ctl", "start", "--wait", f"--log={self._log}")

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Ends all connections, in mode `immediate` as a crash would, and returns when new ones are accepted."""
        self._run("pg_ctl", "restart", "--wait", f"--mode={mode}", f"--log={self._log}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, command: str, *arguments: str) -> None:
        options: dict[str, Any] = {} if self._user is None else {"user": self._user, "extra_groups": []}
        # Without pipes, which the server would keep open.
        subprocess.run(
            [self._binaries / command, *arguments, f"--pgdata={self._data}"],
            stdout=subprocess.DEVNULL,
            cwd=self._data.parent,
            check=True,
            timeout=120,
            **options,
        )
