"""Migrated schemas that tests use in turn: creating one takes longer than most tests."""

from uuid import uuid4

import sqlalchemy
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

SMALL = 1_000
"""Up to this many events, deleting the rows is faster than creating the tables again."""

# Everything that a test might change; a changed schema is not used again.
_STRUCTURE = text("""
    SELECT string_agg(part, ',' ORDER BY part) FROM (
        SELECT concat_ws(' ', relname, relkind, relnatts, relchecks) AS part
            FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace)
        UNION ALL SELECT concat_ws(' ', relname, attname)
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            WHERE relnamespace = CAST(:schema AS regnamespace) AND attnum > 0
        UNION ALL SELECT concat(conname) FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)
        UNION ALL SELECT concat(proname) FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace)
        UNION ALL SELECT concat(tgname, tgenabled) FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
            WHERE relnamespace = CAST(:schema AS regnamespace) AND NOT tgisinternal
    ) AS parts
""")


def in_schema(server: URL, *schemas: str) -> URL:
    return server.update_query_dict({"options": f"-csearch_path={','.join(schemas)}"})


class MigratedSchemas:
    """The schemas that one process of pytest uses on one server."""

    def __init__(self, server: URL) -> None:
        # The server would start two processes for each look at the structure, and sync its disk after each clean-up.
        options = {"options": "-cmax_parallel_workers_per_gather=0 -csynchronous_commit=off"}
        self._engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", connect_args=options)
        self._clean: list[str] = []
        self._structure: str | None = None
        self._tables: list[str] = []
        self._sequences: list[str] = []
        self._revision = ""

    def create(self) -> str:
        """Returns a new schema without tables."""
        schema = f"test_{uuid4().hex}"
        with self._engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        return schema

    def take(self, statements: str) -> str:
        """Returns a schema with all tables, and no rows but those of the migrations.

        Args:
            statements: The migrations.
        """
        if self._clean:
            return self._clean.pop()
        schema = self.create()
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"SET search_path = {schema}")
            connection.exec_driver_sql(statements)
            if self._structure is None:
                self._structure = connection.scalar(_STRUCTURE, {"schema": schema})
                inspector = sqlalchemy.inspect(connection)
                self._tables = inspector.get_table_names()
                self._sequences = inspector.get_sequence_names()
                self._revision = connection.scalars(text("SELECT version_num FROM alembic_version")).one()
            connection.exec_driver_sql("RESET ALL")
        return schema

    def give_back(self, schema: str) -> None:
        """Deletes the rows, so that the schema can be used again; drops it if its tables have changed."""
        try:
            self._clean_up(schema)
        except (DBAPIError, _ChangedError):
            self.drop(schema)
        else:
            self._clean.append(schema)

    def _clean_up(self, schema: str) -> None:
        with self._engine.connect() as connection:
            if connection.scalar(_STRUCTURE, {"schema": schema}) != self._structure:
                raise _ChangedError
            last = connection.scalar(text(f"SELECT max(sequence) FROM {schema}.events"))
            if last is not None and not 0 < last < SMALL:
                raise _ChangedError
            statements = [
                f"SET search_path = {schema}",
                "SET lock_timeout = 2000",
                "SET session_replication_role = replica",  # disables triggers and foreign keys
                *(f"DELETE FROM {table}" for table in self._tables),
                "INSERT INTO append_lock VALUES (1)",
                f"INSERT INTO log_identity VALUES (1, '{uuid4()}')",
                "INSERT INTO compaction VALUES (1, 0)",
                f"INSERT INTO alembic_version VALUES ('{self._revision}')",
                *(f"ALTER SEQUENCE {sequence} RESTART" for sequence in self._sequences),
            ]
            try:
                connection.exec_driver_sql("; ".join(statements))
            finally:
                connection.exec_driver_sql("RESET ALL")

    def drop(self, schema: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))

    def close(self) -> None:
        for schema in self._clean:
            self.drop(schema)
        self._engine.dispose()


class _ChangedError(Exception):
    """The schema has changed, or has too many rows."""
