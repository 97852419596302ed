"""How a database file gets away from its path while it is open."""

import shutil
from pathlib import Path


def delete(path: Path) -> None:
    for file in path.parent.glob("peon.db*"):
        file.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("backup.db"))
    path.with_name("backup.db").replace(path)


WAYS = {"deleted": delete, "moved": move, "replaced": replace}
"""Ways to lose a file, by the word that the error uses."""
