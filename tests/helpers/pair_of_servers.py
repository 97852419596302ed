"""A primary server of PostgreSQL and its synchronous standby, which takes over."""

import shutil
import time
from pathlib import Path

import sqlalchemy
from helpers.private_postgresql_server import PATIENCE, PrivateServer, free_port
from sqlalchemy import URL, text

SETTINGS = (
    # Both names on both servers: a promoted standby waits for the other one from its first commit on.
    "synchronous_standby_names = 'FIRST 1 (one, two)'",
    "synchronous_commit = on",
    "shared_buffers = 16MB",
    # Otherwise what a killed server leaves in /dev/shm stays there, because nothing starts in its folder again.
    "dynamic_shared_memory_type = mmap",
)


class PairOfServers:
    """Two servers that take turns at being the primary.

    Attributes:
        url: An address with both servers; a client is connected to the one that accepts writes.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._ports = {"one": free_port(), "two": free_port()}
        self._primary, self._standby = "one", "two"
        self._servers = {"one": self._started("one")}
        self.add_standby()
        hosts = tuple(f"127.0.0.1:{port}" for port in self._ports.values())
        self.url = URL.create(
            "postgresql+psycopg",
            "postgres",
            database="postgres",
            query={"host": hosts, "target_session_attrs": "read-write", "connect_timeout": "3"},
        )

    @property
    def primary(self) -> URL:
        """The address of the primary server alone."""
        return self._servers[self._primary].url

    @property
    def standby(self) -> URL:
        """The address of the standby alone, which can only be read."""
        return self._servers[self._standby].url

    def cut_replication(self) -> None:
        """Stops the replication to the standby, and returns when the primary knows that it has no standby."""
        engine = sqlalchemy.create_engine(self.standby, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM RESET primary_conninfo"))
            connection.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        self._wait_for("SELECT count(*) FROM pg_stat_replication", 0)

    def has_waiting_commits(self) -> bool:
        """Returns whether a commit waits for the standby."""
        engine = sqlalchemy.create_engine(self.primary)
        with engine.connect() as connection:
            waiting = connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
        engine.dispose()
        return bool(waiting)

    def fail_over(self) -> None:
        """Kills the primary, for good, and promotes the standby. Commits then wait until there is a new standby."""
        self._servers.pop(self._primary).kill()
        self._primary, self._standby = self._standby, self._primary
        self._servers[self._primary].promote()

    def add_standby(self) -> None:
        """Creates a standby from the running primary, and returns when the primary waits for it at each commit."""
        shutil.rmtree(self._folder / self._standby, ignore_errors=True)
        self._servers[self._standby] = self._started(self._standby, self._servers[self._primary])
        self._wait_for("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'", 1)

    def wait_until_equal(self) -> None:
        """Returns when the standby has applied all that the primary has written."""
        engine = sqlalchemy.create_engine(self.primary)
        with engine.connect() as connection:
            end = connection.scalar(text("SELECT pg_current_wal_lsn()"))
        engine.dispose()
        self._wait_for(f"SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{end}'", 1)

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def _started(self, name: str, primary: PrivateServer | None = None) -> PrivateServer:
        folder = self._folder / name
        folder.mkdir()
        # The name by which the primary knows the standby.
        settings = (*SETTINGS, f"cluster_name = '{name}'")
        return PrivateServer(self._binaries, folder, port=self._ports[name], settings=settings, primary=primary)

    def _wait_for(self, query: str, value: object) -> None:
        engine = sqlalchemy.create_engine(self.primary, isolation_level="AUTOCOMMIT")
        deadline = time.monotonic() + PATIENCE
        with engine.connect() as connection:
            while connection.scalar(text(query)) != value:
                assert time.monotonic() < deadline, f"the result did not change in time: {query}"
                time.sleep(0.02)
        engine.dispose()
