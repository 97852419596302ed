"""The table of the application's settings."""

from sqlalchemy import Column, Table, Text

from peon.persistence.schema.metadata import metadata

settings = Table(
    "settings",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
