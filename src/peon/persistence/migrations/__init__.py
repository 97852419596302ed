"""Migrates a database to the newest revision, also when many processes start at once; refuses unknown revisions."""

from peon.persistence.migrations.autogenerate import exclude_peon_tables
from peon.persistence.migrations.revisions import (
    alembic_folder,
    current_revision,
    descriptions,
    known_revision,
    require_head,
    revisions,
)
from peon.persistence.migrations.running import (
    LOCKED_CONNECTION,
    ON_REVISION,
    Migration,
    is_downgrade,
    migrate,
    migration_transaction,
    upgrade,
    write_statements,
)

__all__ = [
    "LOCKED_CONNECTION",
    "ON_REVISION",
    "Migration",
    "alembic_folder",
    "current_revision",
    "descriptions",
    "exclude_peon_tables",
    "is_downgrade",
    "known_revision",
    "migrate",
    "migration_transaction",
    "require_head",
    "revisions",
    "upgrade",
    "write_statements",
]
