"""Tables of PostgreSQL that take the places of others at once, in one transaction.

The new tables are copies of the old ones, with their indexes, keys and privileges, under names of their own. When they
are full, the old tables are dropped and the new ones get their names. That takes the same time for any number of rows,
and nothing is left of it if the transaction is rolled back.

A transaction that reads with an older snapshot would find the new table by its name, and in it only the rows that it
can see: none. So readers with one snapshot lock `projection_positions` before they take it
(`PostgreSQLBackend.projection_reads`), and the tables change places while no such reader is there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Literal

from sqlalchemy import Connection, MetaData, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from peon.persistence.backends.postgresql_log_head import PostgreSQLLogHead
from peon.persistence.backends.side_tables import SIDE_PREFIX, NewTables, TablesChanged
from peon.persistence.schema import projection_positions

LOCK_MILLISECONDS = 100
"""How long one attempt waits for readers. Appends, and readers that come meanwhile, wait as long."""

Step = Literal["create", "set options", "add indexes", "add keys", "rename"]
"""New tables get their indexes and keys when they are full, and the names of the old ones at the end."""

MAXIMUM_NAME_BYTES = 63
"""PostgreSQL cuts longer names."""

_UNAVAILABLE = ("55P03", "57014", "40P01")
"""SQLSTATEs of a lock and of a statement that took too long, and of a deadlock."""

# What a copy would not have, and what would stay with the old table: privileges on single columns, comments, triggers,
# policies, views, keys of other tables. A subscriber of a publication has no tables with the names of the new ones.
_CANNOT_BE_REPLACED = text("""
    WITH old AS (
        SELECT pg_class.* FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = :schema AND relname = ANY(:names)
    )
    SELECT count(*) < cardinality(CAST(:names AS text[])) OR EXISTS (SELECT FROM pg_publication) OR bool_or(
        relkind <> 'r' OR relpersistence <> 'p' OR relhasrules OR relrowsecurity OR relforcerowsecurity
        OR relreplident <> 'd' OR reltablespace <> 0 OR reloftype <> 0
        OR relam <> (SELECT oid FROM pg_am WHERE amname = current_setting('default_table_access_method'))
        OR relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
        OR NOT has_schema_privilege(relnamespace, 'CREATE')
        OR EXISTS (SELECT FROM pg_class AS toast WHERE toast.oid = old.reltoastrelid AND toast.reloptions IS NOT NULL)
        OR EXISTS (SELECT FROM pg_seclabel WHERE classoid = CAST('pg_class' AS regclass) AND objoid = old.oid)
        OR EXISTS (SELECT FROM pg_inherits WHERE old.oid IN (inhrelid, inhparent))
        OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = old.oid AND NOT tgisinternal)
        OR EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = old.oid AND attnum > 0 AND NOT attisdropped
            AND (
                attacl IS NOT NULL OR attidentity <> '' OR coalesce(attstattarget, -1) >= 0
                OR array_to_string(attoptions, ' ') LIKE '%n_distinct%'
            )
        )
        OR EXISTS (
            SELECT FROM pg_description
            WHERE classoid = CAST('pg_class' AS regclass) AND objsubid = 0
            AND (objoid = old.oid OR objoid IN (SELECT indexrelid FROM pg_index WHERE indrelid = old.oid))
        )
        OR EXISTS (
            SELECT FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
            WHERE indrelid = old.oid AND (
                indisclustered OR NOT indisvalid OR index.reltablespace <> 0
                OR index.reloptions IS NOT NULL AND EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
            )
        )
        OR EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = old.oid AND (NOT convalidated OR obj_description(oid, 'pg_constraint') IS NOT NULL)
        )
        OR EXISTS (
            SELECT FROM pg_constraint
            WHERE contype = 'f' AND old.oid IN (conrelid, confrelid)
            AND (conrelid NOT IN (SELECT oid FROM old) OR confrelid NOT IN (SELECT oid FROM old))
        )
        OR EXISTS (
            SELECT FROM pg_depend
            WHERE refclassid = CAST('pg_class' AS regclass) AND refobjid = old.oid
            AND classid NOT IN (
                CAST('pg_constraint' AS regclass), CAST('pg_attrdef' AS regclass), CAST('pg_type' AS regclass),
                CAST('pg_trigger' AS regclass)
            )
            AND NOT EXISTS (
                SELECT FROM pg_class AS part
                WHERE classid = CAST('pg_class' AS regclass) AND part.oid = objid AND part.relkind IN ('i', 't')
            )
        )
        OR EXISTS (
            SELECT FROM pg_depend JOIN pg_type ON pg_type.oid = refobjid
            WHERE refclassid = CAST('pg_type' AS regclass) AND typrelid = old.oid AND deptype = 'n'
        )
    )
    FROM old
""")

# What makes two tables equal, except for names of indexes and keys, and for privileges.
_SHAPES = text(r"""
    WITH described AS (
        SELECT pg_class.oid, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relname = ANY(:names)
        AND CASE WHEN :temporary THEN relnamespace = pg_my_temp_schema() ELSE nspname = :schema END
    ), parts (relname, part) AS (
        SELECT relname, concat_ws(
            ' ', attname, format_type(atttypid, atttypmod), attnotnull, attgenerated, attcollation,
            pg_get_expr(adbin, adrelid)
        )
        FROM described JOIN pg_attribute ON attrelid = described.oid AND attnum > 0 AND NOT attisdropped
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        UNION ALL
        SELECT relname, regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .*? USING ', 'INDEX USING ')
        FROM described JOIN pg_index ON indrelid = described.oid
        UNION ALL
        SELECT described.relname, regexp_replace(
            pg_get_constraintdef(pg_constraint.oid), ' REFERENCES .*?\(',
            concat(' REFERENCES ', target.relname, '(')
        )
        FROM described JOIN pg_constraint ON conrelid = described.oid AND contype <> 'n'
        LEFT JOIN pg_class AS target ON target.oid = confrelid
    )
    SELECT relname, part FROM parts ORDER BY 1, 2
""")

_TEMPORARY_INDEXES = text("SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'i'")

_ALL_PRIVILEGES = text(
    "SELECT relname, CAST(relacl AS text) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE nspname = :schema AND relname = ANY(:names) ORDER BY 1"
)

_TIMEOUTS = text("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")

_SET_TIMEOUTS = text(
    "SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"
)

# The statements of each `Step`.
_STATEMENTS = text(r"""
    WITH old AS (
        SELECT pg_class.oid, relname, nspname, reloptions, format('%I.%I', nspname, relname) AS old,
            format('%I.%I', nspname, :prefix || relname) AS new
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = :schema AND relname = ANY(:names)
    ), indexes AS (
        SELECT old.*, index.relname AS index, indexrelid, :prefix || indexrelid AS new_index
        FROM old JOIN pg_index ON indrelid = old.oid JOIN pg_class AS index ON index.oid = indexrelid
    )
    SELECT 'create', format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES)', new, old) FROM old
    UNION ALL
    SELECT 'set options', format('ALTER TABLE %s SET (%s)', new, array_to_string(reloptions, ', ')) FROM old
    WHERE reloptions IS NOT NULL
    UNION ALL
    SELECT 'add indexes', CASE
        WHEN pg_constraint.oid IS NULL THEN regexp_replace(
            pg_get_indexdef(indexrelid), 'INDEX .*? USING ', format('INDEX %I ON %s USING ', new_index, new)
        )
        ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', new, new_index, pg_get_constraintdef(pg_constraint.oid))
    END
    FROM indexes LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indexes.oid AND contype <> 'f'
    UNION ALL
    SELECT 'add keys', format('ALTER TABLE %s ADD CONSTRAINT %I %s', old.new, conname, regexp_replace(
        pg_get_constraintdef(pg_constraint.oid), ' REFERENCES .*?\(', format(' REFERENCES %s(', target.new)
    ))
    FROM old JOIN pg_constraint ON conrelid = old.oid AND contype = 'f' JOIN old AS target ON target.oid = confrelid
    UNION ALL
    SELECT 'rename', format('ALTER TABLE %s RENAME TO %I', new, relname) FROM old
    UNION ALL
    SELECT 'rename', format('ALTER INDEX %I.%I RENAME TO %I', nspname, new_index, index) FROM indexes
    ORDER BY 1, 2
""")

# A new table has the default privileges of its creator.
_PRIVILEGES = text("""
    WITH pairs AS (
        SELECT format('%I.%I', nspname, new.relname) AS name,
            coalesce(new.relacl, acldefault('r', new.relowner)) AS found,
            coalesce(old.relacl, acldefault('r', old.relowner)) AS wanted
        FROM pg_class AS old JOIN pg_namespace ON pg_namespace.oid = old.relnamespace
        JOIN pg_class AS new ON new.relnamespace = old.relnamespace AND new.relname = :prefix || old.relname
        WHERE nspname = :schema AND old.relname = ANY(:names) AND new.relacl IS DISTINCT FROM old.relacl
    ), grants AS (
        SELECT name, is_wanted, privilege_type, is_grantable,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE CAST(CAST(grantee AS regrole) AS text) END AS role
        FROM pairs CROSS JOIN LATERAL (
            SELECT false AS is_wanted, * FROM aclexplode(found) UNION ALL SELECT true, * FROM aclexplode(wanted)
        ) AS entries
    )
    SELECT format('REVOKE ALL ON %s FROM %s', name, role), false AS is_wanted FROM grants WHERE NOT is_wanted
    UNION
    SELECT format(
        'GRANT %s ON %s TO %s%s', privilege_type, name, role, CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
    ), true FROM grants WHERE is_wanted
    ORDER BY is_wanted, 1
""")


class PostgreSQLNewTables(NewTables):
    """See `NewTables`.

    Args:
        tables: With the schema that holds the log.
    """

    def __init__(self, schema: str, tables: Sequence[Table]) -> None:
        self._schema = schema
        self._old = tables
        metadata = MetaData()
        self.tables = [table.to_metadata(metadata, name=SIDE_PREFIX + table.name) for table in tables]
        self._found: object = None
        self._statements: list[tuple[Step, str]] = []

    def can_replace(self, connection: Connection) -> bool:
        if any(len(table.name.encode()) > MAXIMUM_NAME_BYTES for table in self.tables):
            return False
        return not self._rows(connection, _CANNOT_BE_REPLACED)[0][0]

    def are_created_as(self, connection: Connection, declared: Sequence[Table]) -> bool:
        # The tables that hide them have all but some indexes.
        metadata = MetaData(naming_convention=declared[0].metadata.naming_convention)
        with connection.begin_nested() as savepoint:
            found = set(connection.scalars(_TEMPORARY_INDEXES))
            for table in declared:
                for index in table.to_metadata(metadata, schema="pg_temp").indexes:
                    if index.name not in found:
                        index.create(connection)
            expected = self._shapes(connection, declared, temporary=True)
            savepoint.rollback()
        return expected == self._shapes(connection, declared)

    def wait_for_others(self, connection: Connection) -> None:
        # Also for a rebuild of another projection: each would wait until the other has stopped reading the positions.
        key = sha256(f"peon rebuild\0{self._schema}".encode()).digest()[:8]
        connection.execute(select(func.pg_advisory_xact_lock(int.from_bytes(key, "big", signed=True))))

    def create(self, connection: Connection) -> None:
        self._statements = [(step, statement) for step, statement in self._rows(connection, _STATEMENTS)]
        self._found = self._description(connection)
        self._run(connection, "create")
        self._run(connection, "set options")
        for statement, _ in self._rows(connection, _PRIVILEGES):
            connection.exec_driver_sql(statement.replace("%", "%%"))

    def fill(self, connection: Connection, sources: Sequence[Table]) -> None:
        for source, table in zip(sources, self.tables, strict=True):
            names = [column.name for column in table.columns]
            connection.execute(insert(table).from_select(names, select(*[source.c[name] for name in names])))
        self._run(connection, "add indexes")
        self._run(connection, "add keys")
        for table in self.tables:  # the server would choose slow plans until it does so by itself
            connection.exec_driver_sql(f"ANALYZE {_quoted(connection, table)}")
        # Neither readers nor appends wait for this lock. An automatic vacuum gives way to it, and not to one that is
        # requested for a short time.
        connection.exec_driver_sql(f"LOCK TABLE {self._names(connection)} IN SHARE UPDATE EXCLUSIVE MODE")

    @contextmanager
    def standing_in(self, connection: Connection) -> Iterator[None]:
        # A temporary view is found first, and writes to the table that it shows.
        quote = connection.dialect.identifier_preparer.quote
        names = [f"pg_temp.{quote(table.name)}" for table in self._old]
        for name, table in zip(names, self.tables, strict=True):
            connection.exec_driver_sql(f"CREATE VIEW {name} AS TABLE {_quoted(connection, table)}")
        yield
        connection.exec_driver_sql(f"DROP VIEW {', '.join(names)}")

    def try_to_replace(self, connection: Connection) -> bool:
        lock_timeout, statement_timeout = connection.execute(_TIMEOUTS).one()
        savepoint = connection.begin_nested()
        try:
            PostgreSQLLogHead.join(connection)  # an append locks it before it writes to the tables
            short = str(LOCK_MILLISECONDS)
            connection.execute(_SET_TIMEOUTS, {"lock": short, "statement": short})
            names = f"{projection_positions.name}, {self._names(connection)}"
            connection.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            # What belongs to the old tables is not locked yet: a vacuum may work on their large values.
            connection.execute(_SET_TIMEOUTS, {"lock": short, "statement": statement_timeout})
            if self._description(connection) != self._found or not self.can_replace(connection):
                raise TablesChanged
            connection.exec_driver_sql(f"DROP TABLE {self._names(connection)}")
        except Exception as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if getattr(cause, "sqlstate", None) not in _UNAVAILABLE:
                raise
            savepoint.rollback()  # with it, the locks and timeouts end
            return False
        savepoint.commit()
        connection.execute(_SET_TIMEOUTS, {"lock": lock_timeout, "statement": statement_timeout})
        self._run(connection, "rename")
        return True

    def drop(self, connection: Connection) -> None:
        names = ", ".join(_quoted(connection, table) for table in self.tables)
        connection.exec_driver_sql(f"DROP TABLE {names}")

    def _description(self, connection: Connection) -> object:
        privileges, statements = self._rows(connection, _ALL_PRIVILEGES), self._rows(connection, _STATEMENTS)
        return self._shapes(connection, self._old), privileges, statements

    def _shapes(self, connection: Connection, tables: Sequence[Table], *, temporary: bool = False) -> list[Any]:
        names = [table.name for table in tables]
        values = {"schema": self._schema, "names": names, "temporary": temporary}
        return [*connection.execute(_SHAPES, values)]

    def _rows(self, connection: Connection, query: Any) -> list[Any]:
        names = [table.name for table in self._old]
        return [*connection.execute(query, {"schema": self._schema, "names": names, "prefix": SIDE_PREFIX})]

    def _names(self, connection: Connection) -> str:
        return ", ".join(_quoted(connection, table) for table in self._old)

    def _run(self, connection: Connection, step: Step) -> None:
        statements = [statement for its_step, statement in self._statements if its_step == step]
        if statements:  # in one round trip
            connection.exec_driver_sql(";\n".join(statements).replace("%", "%%"))


def _quoted(connection: Connection, table: Table) -> str:
    return connection.dialect.identifier_preparer.format_table(table)
