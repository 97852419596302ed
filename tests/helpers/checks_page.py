"""The table of checks in docs/reference/checks.md."""

from collections.abc import Iterator

from peon.persistence.operations.diagnosis import CHECKS

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def rows() -> Iterator[str]:
    for check in CHECKS:
        where = " and ".join(NAMES[each] for each in check.backends)
        deep = "only with `--deep`" if check.is_deep else ""
        yield f"| {check.name} | {where} | {' '.join(str(check.examine.__doc__).split())} | {deep} |"
