"""What a role of PostgreSQL needs, and the advice for one that lacks it.

The page docs/how-to/grant-privileges.md has the same grants, and a test compares both with what a server demands.
"""

import re

from peon.persistence.schema import metadata

INSUFFICIENT_PRIVILEGE = "42501"
INVALID_SCHEMA_NAME = "3F000"

# What an application needs of each table; of the remaining tables, which the projections and the settings use, it needs
# everything.
_OF_LOG = {
    "alembic_version": "SELECT",
    "events": "SELECT, INSERT",
    "append_lock": "SELECT, UPDATE",
    "tags": "SELECT, INSERT",
    "event_tags": "SELECT, INSERT",
    "tag_positions": "SELECT, INSERT, UPDATE",
    "command_receipts": "SELECT, INSERT",
    "subscription_positions": "SELECT, INSERT, UPDATE",
}
_OF_OTHERS = "SELECT, INSERT, UPDATE, DELETE"

# A server that speaks another language than English gets the general advice.
_DENIED = re.compile(r'permission denied (?:for (\w+) |to create temporary tables in (database) )"?([^"]+)"?')


def advice(sqlstate: str, message: str) -> str:
    """Returns what to do about an error with one of the two codes of this module.

    Args:
        message: The server's message, which names the table or the schema, and no value.
    """
    if sqlstate == INVALID_SCHEMA_NAME:
        return "create the schema that search_path names, and run  GRANT USAGE ON SCHEMA … TO <role>"
    found = _DENIED.match(message)
    kind, name = (found[1] or found[2], found[3]) if found else ("", "")
    if kind == "table" and (name in _OF_LOG or name in metadata.tables):
        privileges = _OF_LOG.get(name, _OF_OTHERS)
        return f"run  GRANT {privileges} ON {name} TO <role>  or, for a migration, connect as the owner of the tables"
    if kind == "schema":
        return f"run  GRANT USAGE, CREATE ON SCHEMA {name} TO <role>  (without CREATE if the role does not migrate)"
    if kind == "database":
        return f"run  GRANT CONNECT, TEMPORARY ON DATABASE {name} TO <role>"
    return "grant the privilege to the role, or connect as the owner"


def no_schema(search_path: str, role: str) -> str:
    """Returns what to do if the role can use no schema of its search path."""
    named = [name for part in search_path.split(",") if (name := part.strip()) not in ("", '"$user"')]
    name = named[0] if named else role
    return (
        f"no schema of the search_path ({search_path or 'empty'}) exists and may be used by the role {role}: run  "
        f"CREATE SCHEMA {name}  if it does not exist, and  GRANT USAGE, CREATE ON SCHEMA {name} TO {role}"
    )
