"""Compares tables in a database with their declaration, so that a rebuild does not fill a table of another shape."""

from collections.abc import Iterable

from sqlalchemy import Column, Connection, Inspector, Table, inspect
from sqlalchemy.exc import NoSuchTableError


def are_as_declared(connection: Connection, tables: Iterable[Table]) -> bool:
    """Returns whether each table exists with the columns, keys and indexes that it declares.

    The types of columns are not compared, because each database system has its own names for them.

    Args:
        tables: With the schema in which they are looked for.
    """
    inspector = inspect(connection)
    try:
        return all(_is_as_declared(inspector, table) for table in tables)
    except NoSuchTableError:
        return False


def _is_as_declared(inspector: Inspector, table: Table) -> bool:
    name, schema = table.name, table.schema
    columns = {column["name"]: column["nullable"] for column in inspector.get_columns(name, schema)}
    key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
    references = {
        (*each["constrained_columns"], each["referred_table"], each["options"].get("ondelete"))
        for each in inspector.get_foreign_keys(name, schema)
    }
    indexes = {tuple(index["column_names"]) for index in inspector.get_indexes(name, schema)}
    return (
        columns == {column.name: column.nullable for column in table.columns}
        and {*key} == {column.name for column in table.primary_key.columns}
        and references == _references(table)
        and indexes >= _indexes(table)
    )


def _references(table: Table) -> set[tuple[str | None, ...]]:
    return {
        (*(column.name for column in key.columns), key.referred_table.name, key.ondelete and key.ondelete.upper())
        for key in table.foreign_key_constraints
    }


def _indexes(table: Table) -> set[tuple[str, ...]]:
    """Returns the columns of each index that has no other expressions."""
    return {
        tuple(column.name for column in index.columns)
        for index in table.indexes
        if all(isinstance(expression, Column) for expression in index.expressions)
    }
