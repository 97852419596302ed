"""The tables that record how far each projection has come, and which events it could not apply."""

from sqlalchemy import BigInteger, Column, Integer, Table, Text

from peon.persistence.schema.metadata import metadata

# The position of each projection in the log, and the version of its code.
projection_positions = Table(
    "projection_positions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
)

# The stored events that a projection could not apply.
projection_problems = Table(
    "projection_problems",
    metadata,
    Column("projection", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event_type", Text, nullable=False),
    Column("reason", Text, nullable=False),
)
