"""How much space the tables of a schema take, and which sessions use the database."""

from sqlalchemy import Connection, text

from peon.persistence.backends.sizes import SizeOfPart, Storage

# A table with what it keeps outside of its pages, and each index by itself. One that was dropped meanwhile has no size.
_PARTS = text(
    "SELECT CAST(part.relname AS text), CAST(coalesce(owner.relname, part.relname) AS text), "
    "coalesce(CASE part.relkind WHEN 'i' THEN pg_relation_size(part.oid) ELSE pg_table_size(part.oid) END, 0) "
    "FROM pg_class AS part JOIN pg_namespace AS schema ON schema.oid = part.relnamespace "
    "LEFT JOIN pg_index AS of_table ON of_table.indexrelid = part.oid "
    "LEFT JOIN pg_class AS owner ON owner.oid = of_table.indrelid "
    "WHERE schema.nspname = :schema AND part.relkind IN ('r', 'i') ORDER BY 1"
)

_SESSIONS = text(
    "SELECT coalesce(nullif(application_name, ''), 'unnamed'), coalesce(host(client_addr), 'this machine'), count(*) "
    "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "GROUP BY 1, 2 ORDER BY 1, 2"
)


def storage_of(connection: Connection, schema: str) -> Storage:
    return Storage(sum(part.bytes for part in sizes_of_parts(connection, schema)), None, None)


def sizes_of_parts(connection: Connection, schema: str) -> list[SizeOfPart]:
    return [SizeOfPart(*row) for row in connection.execute(_PARTS, {"schema": schema})]


def sessions(connection: Connection) -> list[str]:
    """Returns the other sessions of the database, counted by application and machine."""
    return [
        f"{count} {'session' if count == 1 else 'sessions'} of {application} on {machine}"
        for application, machine, count in connection.execute(_SESSIONS)
    ]
