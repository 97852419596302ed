"""The metadata that all tables share, and its naming convention."""

from sqlalchemy import MetaData

metadata = MetaData(
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

USED_TO_APPLY = "peon_used_to_apply"
"""In `Column.info`: handlers look rows up by this column, so shadow tables have its index as well."""
