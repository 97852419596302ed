"""Vacuums the tables of a PostgreSQL database."""

from collections.abc import Callable

from sqlalchemy import Engine, text

from peon.persistence.backends.sizes import Space
from peon.persistence.schema import metadata

OLD_ROWS = (
    "the files of the tables keep the old rows until the owner of the tables runs  peon vacuum --full  and VACUUM FULL "
    "of the tables of projections of its own, and the server's write-ahead log keeps them until it is recycled"
)

# Of an index too, and of text that is stored apart.
_SPACE = text("SELECT CAST(coalesce(pg_total_relation_size(to_regclass(:name)), 0) AS bigint)")


def space_of(engine: Engine) -> Space:
    with engine.connect() as connection:
        total = sum(connection.scalar(_SPACE, {"name": name}) or 0 for name in _tables())
    return Space(total, 0, can_shrink=True, available=None)


def give_back_space(engine: Engine, report: Callable[[int, int], None], *, full: bool) -> None:
    tables = _tables()
    command = "VACUUM FULL" if full else "VACUUM"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for number, table in enumerate(tables, 1):
            connection.exec_driver_sql(f"{command} {table}")
            report(number, len(tables))


def _tables() -> list[str]:
    return sorted(metadata.tables)
