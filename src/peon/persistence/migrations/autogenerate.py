"""Keeps Peon's tables out of the autogenerate of an application."""

from collections.abc import Collection, Mapping

from sqlalchemy import Table

from peon.config import AppConfig
from peon.persistence.backends.side_tables import SIDE_PREFIX
from peon.persistence.schema import metadata


def exclude_peon_tables(
    name: str | None,
    type_: str,
    parent_names: Mapping[str, str | None],  # noqa: ARG001 - Alembic fixes the arguments
    *,
    version_table: str | None = None,
    tables: Collection[Table] = (),
) -> bool:
    """Keeps Peon's tables out of the autogenerate of your own Alembic tree: pass it as `include_name`.

    It excludes them in every schema, because an autogenerate that proposes to drop a log does more harm than one that
    overlooks a table. To pass further arguments, use `functools.partial`.

    Args:
        name: See Alembic's `include_name`.
        type_: See Alembic's `include_name`.
        parent_names: See Alembic's `include_name`.
        version_table: The table with the revision of Peon's tables; by default `database.version_table` as `AppConfig`
            reads it from environment and file.
        tables: The tables of your own projections, which Peon creates, too.

    Returns:
        Whether Alembic compares what has this name. For Peon's tables, and so for their indexes and columns, `False`;
            also for those that a rebuild uses.

    Raises:
        ConfigError: `version_table` is not given, and the configuration is wrong.
    """
    if type_ != "table":
        return True
    if name in metadata.tables or any(name == table.name for table in tables):
        return False
    if name is not None and name.startswith(SIDE_PREFIX):
        return False
    return name != (AppConfig().database.version_table if version_table is None else version_table)
