"""Copies a database into an empty one, for example from SQLite to PostgreSQL, and checks that both are equal.

    python examples/copy_database.py SOURCE_URL TARGET_URL

The target is created where it does not exist. The source is only read; stop what writes to it before.
"""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress

from peon.config import ConfigError
from peon.persistence import Database, PersistenceError, copy_database
from peon.persistence.schema import projection_problems


def copied(source: Database, target: Database, console: Console) -> str:
    """Returns a line that says what was done; raises `PersistenceError` if the target differs from the source."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        count = copy_database(source, target, reporter(bar, "Copying"))
        last = target.events.last_sequence()
        target.projections.catch_up(reporter(bar, "Building projections"))
        differences = target.projections.verify(reporter(bar, "Verifying"))
    newest = source.events.last_sequence()
    if newest != last:
        raise PersistenceError(
            f"the target ends with event {last:,}, but the source now ends with event {newest:,}: stop all writers of "
            "the source, and copy it into a new database"
        )
    # Events that cannot be decoded or applied are problems in both databases.
    wrong = [difference for difference in differences if difference.table != projection_problems.name]
    if wrong:
        raise PersistenceError(f"the projections differ from the log in {len(wrong):,} places, first {wrong[0][:3]}")
    problems = len(target.projections.problems())
    result = f"Copied {count:,} events, the last with sequence {last:,}; the projections are verified"
    return f"{result}, except for {problems:,} events that they cannot apply." if problems else f"{result}."


def reporter(bar: Progress, description: str) -> Callable[[int, int], None]:
    task = bar.add_task(description, total=None)

    def report(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a database into an empty one.")
    parser.add_argument("source", metavar="SOURCE_URL", help="sqlite:///… or postgresql+psycopg://…")
    parser.add_argument("target", metavar="TARGET_URL", help="an empty database, or one that does not exist yet")
    arguments = parser.parse_args()
    console = Console()
    try:
        with (
            Database.open(url=arguments.source, migrate=False, maintain_projections=False) as source,
            Database.open(url=arguments.target) as target,
        ):
            console.print(copied(source, target, console), soft_wrap=True)
    except (ConfigError, PersistenceError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
