"""SQLite files with damaged pages."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest


def pages_of(path: Path, name: str, kind: str = "leaf") -> list[int]:
    """Returns the pages of a table or an index in a closed file, in the order of its keys."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY path", [name, kind]
            )
        except sqlite3.OperationalError:
            pytest.skip("this build of SQLite has no dbstat")
        return [page for (page,) in rows]


def damage_page(path: Path, page: int, content: bytes = b"") -> None:
    """Overwrites a page of a closed file; with zeros by default."""
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(content or bytes(size))


def is_damaged(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
        except sqlite3.DatabaseError:
            return True


def damage_middle(path: Path, name: str) -> None:
    """Overwrites the leaf in the middle of a table or an index with zeros."""
    pages = pages_of(path, name)
    damage_page(path, pages[len(pages) // 2])
