"""What a run depends on: the machine, the file system and the versions. Nothing here identifies the machine."""

import os
import platform
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tables import Table

DISTRIBUTIONS = {"SQLAlchemy": "sqlalchemy", "pydantic": "pydantic", "psycopg": "psycopg", "peon": "peon"}
MOUNTS = Path("/proc/self/mountinfo")
CPU_INFO = Path("/proc/cpuinfo")
BLOCK_DEVICES = Path("/sys/dev/block")


@dataclass(frozen=True)
class Environment:
    """Where and when a run took place.

    Attributes:
        disk: The file system that holds the SQLite databases, and the kind of its disk.
        durability: The settings of PostgreSQL that decide what a commit costs; empty without a server.
        versions: By name, in the order in which they are shown.
    """

    date: str
    cpu: str
    cores: int
    memory_gb: float
    disk: str
    kernel: str
    durability: str
    versions: dict[str, str]

    def table(self) -> Table:
        rows = [
            ("date", self.date),
            ("CPU", f"{self.cpu}, {self.cores} cores"),
            ("memory", f"{self.memory_gb:.0f} GB"),
            ("disk", self.disk),
            ("kernel", self.kernel),
            *self.versions.items(),
        ]
        if self.durability:
            rows.append(("PostgreSQL settings", self.durability))
        return Table(("", "value"), rows)


def read_environment(folder: Path, postgresql: str | None, durability: str) -> Environment:
    """Describes this machine.

    Args:
        folder: Where the SQLite databases are created.
        postgresql: The version of the server; `None` without one.
    """
    versions = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    versions |= {name: version(distribution) for name, distribution in DISTRIBUTIONS.items()}
    if postgresql is not None:
        versions["PostgreSQL"] = postgresql
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        disk=_disk(folder),
        # Without the suffix: it names the distribution or the host's own build.
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        durability=durability,
        versions=versions,
    )


def _cpu_model() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _disk(folder: Path) -> str:
    """Returns for instance `ext4 on a virtual disk`."""
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if not MOUNTS.exists():
        return "unknown"
    for line in MOUNTS.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == device:
            return f"{fields[fields.index('-') + 1]} on {_disk_kind(device)}"
    return f"unknown file system on {_disk_kind(device)}"


def _disk_kind(device: str) -> str:
    """Returns the kind of the disk behind a device number such as `8:1`."""
    block = (BLOCK_DEVICES / device).resolve()
    if not block.exists():
        return "no block device"
    if (block / "partition").exists():
        block = block.parent
    if block.name.startswith("vd"):
        return "a virtual disk"
    if block.name.startswith("nvme"):
        return "an NVMe disk"
    rotational = block / "queue" / "rotational"
    if rotational.exists() and rotational.read_text(encoding="ascii").strip() == "1":
        return "a rotating disk"
    return "a solid-state disk"
