"""Statements of SQLAlchemy Core that are compiled once and run by the driver."""

import pytest
from sqlalchemy import bindparam, select, update

from peon.persistence import Database
from peon.persistence.backends.compiled import MAXIMUM_KEYS, CompiledQuery, CompiledStatement, KeyedQuery, insert_into
from peon.persistence.schema import projection_projects, settings

INSERT = insert_into(settings)
RENAME = CompiledStatement(
    update(settings).where(settings.c.key == bindparam("of_key")).values(value=bindparam("new_value")),
    ["new_value", "of_key"],
)
BY_VALUE = CompiledQuery(select(settings.c.key).where(settings.c.value == bindparam("of_value")), ["of_value"])
BY_KEY = KeyedQuery(settings.c.key, settings.c.key, settings.c.value)


def test_rows_are_inserted_changed_and_counted(database: Database) -> None:
    with database.engine.begin() as connection:
        assert INSERT.run(connection, [("a", "1")]) == 1
        assert INSERT.run(connection, [("b", "1"), ("c", "2 % of 3")]) == 2
        assert INSERT.run(connection, []) == 0
        assert RENAME.run(connection, [("3", "a"), ("3", "none"), ("3", "c")]) == 2
        assert sorted(BY_VALUE.rows(connection, "3")) == [("a",), ("c",)]
        assert BY_VALUE.rows(connection, "4") == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, MAXIMUM_KEYS - 1, MAXIMUM_KEYS, MAXIMUM_KEYS + 1, 1_300])
def test_rows_are_found_by_any_number_of_keys(database: Database, count: int) -> None:
    with database.engine.begin() as connection:
        INSERT.run(connection, [(str(number), str(-number)) for number in range(1_400)])

        found = BY_KEY.rows(connection, [str(number) for number in range(count)] + ["not there"])

    assert sorted(found) == sorted((str(number), str(-number)) for number in range(count))


def test_parameters_in_a_different_order_than_in_the_text_are_refused(database: Database) -> None:
    wrong = CompiledStatement(
        update(projection_projects)
        .where(projection_projects.c.id == bindparam("of_id"))
        .values(name=bindparam("new_name")),
        ["of_id", "new_name"],
    )
    with database.engine.begin() as connection, pytest.raises(TypeError, match=r"new_name.*of_id"):
        wrong.run(connection, [("a", "b")])
