"""A private PostgreSQL server that a test may stop; it uses the installed binaries."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL


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
        self._port = port
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
        address = ["--host=127.0.0.1", f"--port={self._port}", "--username=postgres"]
        self._run("pg_basebackup", *address, "--checkpoint=fast", "--no-sync", data=folder)
        return folder

    def use(self, data: Path) -> None:
        """Lets the next start use another folder of data."""
        self._data = data

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Restarts the server and returns when it accepts connections; mode `immediate` ends it like a crash."""
        self._run("pg_ctl", "restart", "--wait", f"--mode={mode}", f"--log={self._log}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, command: str, *arguments: str, data: Path | None = None) -> None:
        options: dict[str, Any] = {} if self._user is None else {"user": self._user, "extra_groups": []}
        # No pipes: the server would keep them open.
        subprocess.run(
            [self._binaries / command, *arguments, f"--pgdata={data or self._data}"],
            stdout=subprocess.DEVNULL,
            cwd=self._data.parent,
            check=True,
            timeout=120,
            **options,
        )
