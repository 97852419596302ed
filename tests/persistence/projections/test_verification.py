"""`verify` compares the tables with the log and reports each difference."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from helpers.orchestration_scene import (
    CHECKPOINT,
    DECIDED,
    MESSAGE,
    OTHER_PROJECT,
    OTHER_THREAD,
    OTHER_TURN,
    PROJECT,
    SCENE,
    THREAD,
    TOOL_CALL,
    UNKNOWN,
    Opener,
    another,
    append_alone,
    change,
    found,
    renamed,
    rows_of_all_tables,
    told,
)
from helpers.reference_model import State
from sqlalchemy import URL, Integer, Table, delete, insert, select, update

from peon.persistence import Database, Difference, create_engine, schema
from peon.persistence.orchestration.projection import OrchestrationProjection

ROWS: tuple[tuple[Table, dict[str, Any], str, Any], ...] = (
    (schema.projection_message_chunks, {"message_id": str(MESSAGE)}, "delta", '""'),
    (schema.projection_messages, {"id": str(TOOL_CALL)}, "content", "{}"),
    (schema.projection_approvals, {"id": str(DECIDED)}, "reason", None),
    (schema.checkpoints, {"id": str(CHECKPOINT)}, "restored_at", "2026-05-17T00:00:00.000000Z"),
    (schema.projection_commits, {"thread_id": str(THREAD)}, "hash", "c0ffe"),
    (schema.projection_branches, {"name": "tides"}, "sequence", 1),
    (schema.projection_open_tool_calls, {"tool_call_id": "1"}, "turn_id", str(OTHER_TURN)),
    (schema.projection_selected_thread, {"thread_id": str(THREAD)}, "thread_id", str(OTHER_THREAD)),
    (schema.projection_turns, {"id": str(OTHER_TURN)}, "status", "completed"),
    (schema.projection_threads, {"id": str(OTHER_THREAD)}, "status", "running"),
    (schema.projection_projects, {"id": str(OTHER_PROJECT)}, "name", "tampered"),
)
"""For each table: the key of a row, a column to change, and the new value. Rows come before the rows they refer to."""


def row_of(database: Database, table: Table, key: dict[str, Any]) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return dict(connection.execute(select(table).filter_by(**key)).mappings().one())


def key_of(table: Table, row: dict[str, Any]) -> str:
    return "/".join(str(row[part.name]) for part in table.primary_key)


def differing(database: Database) -> list[Difference]:
    """Returns the differences by table; checks that `verify` changes nothing and that a rebuild repairs them."""
    before = rows_of_all_tables(database)
    differences = database.projections.verify()
    assert rows_of_all_tables(database) == before
    database.projections.rebuild()
    assert database.projections.verify() == []
    return sorted(differences, key=lambda difference: difference[:3])


class TestVerify:
    def test_rows_cover_every_table_of_the_projection(self) -> None:
        # What is left to clear depends on how far it was cleared, and is not compared.
        assert {table for table, *_ in ROWS} == {*OrchestrationProjection.tables} - {schema.projection_deletions}

    def test_finds_a_changed_column_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, column, value in ROWS:
            row = row_of(database, table, key)
            change(database, update(table).filter_by(**key).values({column: value}))
            expected.append(Difference(table.name, key_of(table, row), column, row[column], value))

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    def test_finds_a_missing_row_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, *_ in ROWS:
            row = row_of(database, table, key)
            change(database, delete(table).filter_by(**key))
            expected += [
                Difference(table.name, key_of(table, row), column, value, None)
                for column, value in row.items()
                if value is not None
            ]

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    def test_finds_an_extra_row_in_each_table(self, database: Database) -> None:
        database.events.append_all(SCENE)
        expected = []
        for table, key, *_ in ROWS:
            row = row_of(database, table, key)
            last = list(table.primary_key)[-1]
            row[last.name] = 99 if isinstance(last.type, Integer) else "added"
            change(database, insert(table).values(row))
            expected += [
                Difference(table.name, key_of(table, row), column, None, value)
                for column, value in row.items()
                if value is not None
            ]

        assert differing(database) == sorted(expected, key=lambda difference: difference[:3])

    @pytest.mark.parametrize(("column", "value"), [("version", 0), ("sequence", 3)])
    def test_finds_a_wrong_position(self, database: Database, column: str, value: int) -> None:
        database.events.append_all(SCENE)
        change(database, update(schema.projection_positions).values({column: value}))

        expected = {"version": OrchestrationProjection.version, "sequence": len(SCENE)}[column]
        assert differing(database) == [Difference("projection_positions", "orchestration", column, expected, value)]

    def test_finds_a_missing_position(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(database, delete(schema.projection_positions))

        assert {difference[:4] for difference in differing(database)} >= {
            ("projection_positions", "orchestration", "sequence", len(SCENE))
        }

    def test_finds_events_that_were_appended_without_projections(self, database: Database) -> None:
        database.events.append_all(SCENE)
        append_alone(database, renamed("x"))

        assert differing(database) == [
            Difference("projection_positions", "orchestration", "sequence", len(SCENE) + 1, len(SCENE)),
            Difference("projection_projects", str(PROJECT), "name", "x", "tide-table"),
        ]

    def test_finds_a_recorded_problem_that_does_not_exist(self, database: Database) -> None:
        database.events.append_all(SCENE)
        change(
            database,
            insert(schema.projection_problems).values(
                projection="orchestration", sequence=2, event_type="ProjectCreated", reason="none at all"
            ),
        )

        assert differing(database) == [
            Difference("projection_problems", "orchestration/2", "reason", None, "none at all")
        ]

    def test_finds_a_problem_that_was_not_recorded(self, database: Database) -> None:
        append_alone(database, *SCENE, renamed("x", UNKNOWN))
        database.projections.catch_up()
        change(database, delete(schema.projection_problems))

        reason = f"there is no project {UNKNOWN}"
        assert database.projections.verify() == [
            Difference("projection_problems", f"orchestration/{len(SCENE) + 1}", "reason", reason, None)
        ]

    def test_reports_progress_after_each_page(self, database: Database, small_pages: None) -> None:
        database.events.append_all(SCENE)
        reported: list[tuple[int, int]] = []

        assert database.projections.verify(lambda *pair: reported.append(pair)) == []

        assert reported == [(4, 19), (8, 19), (12, 19), (16, 19), (19, 19)]

    def test_compares_one_consistent_state_during_appends(self, open_lasting: Opener, small_pages: None) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        with another(database) as other:
            assert database.projections.verify(lambda *_: other.events.append_all([renamed(str(uuid4()))])) == []

        assert database.projections.position() > len(SCENE)
        assert database.projections.verify() == []

    def test_leaves_nothing_behind_when_it_is_interrupted(self, database: Database) -> None:
        database.events.append_all(SCENE)

        def interrupt(*_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.projections.verify(interrupt)

        assert found(database) == told(*SCENE).state()
        database.events.append_all([renamed("x")])
        assert database.projections.verify() == []

    @pytest.mark.postgresql_too("temporary tables")
    def test_other_connections_do_not_see_the_shadow_tables(self, open_lasting: Opener, small_pages: None) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        expected = found(database)
        seen: list[State] = []

        with another(database) as other:
            database.projections.verify(lambda *_: seen.extend([found(database), found(other)]))

        assert seen == [expected] * 10


@pytest.fixture
def never_opened(migrated_lasting_url: URL) -> Iterator[Database]:
    """A database as a migration leaves it: its projection has no position."""
    with Database(create_engine(migrated_lasting_url), maintain_projections=False) as database:
        change(database, delete(schema.projection_positions))
        yield database


class TestNeverOpened:
    def test_its_empty_tables_are_equal_to_its_empty_log(self, never_opened: Database) -> None:
        assert never_opened.projections.verify() == []

    def test_a_row_in_its_tables_is_found(self, never_opened: Database) -> None:
        row = {"id": str(uuid4()), "name": "extra", "path": "/p", "created_at": "2026-05-17", "sequence": 1}
        change(never_opened, insert(schema.projection_projects).values(row))

        assert [each.column for each in never_opened.projections.verify()] == ["version", "sequence"]

    def test_events_that_nothing_has_applied_are_found(self, never_opened: Database) -> None:
        never_opened.events.append_all(SCENE)

        assert [each.column for each in never_opened.projections.verify()] == ["version", "sequence"]
