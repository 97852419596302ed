"""A restore of some of the tables can leave positions that do not belong to the tables beside them."""

import logging

import pytest
from helpers.orchestration_scene import SCENE, Opener, another, append_alone, change, found, renamed, told
from helpers.word_count_projection import SCENE as WORDS_SCENE
from helpers.word_count_projection import WordCount, words
from sqlalchemy import delete, select, update

from peon.persistence import Database, ProjectionsOutOfDate, schema

positions = schema.projection_positions


@pytest.fixture
def database(open_empty: Opener) -> Database:
    database = open_empty()
    database.events.append_all(SCENE)
    return database


def set_position(database: Database, sequence: int) -> None:
    change(database, update(positions).values(sequence=sequence))


class TestFullTablesBesideThePositionOfAnEmptyLog:
    """`pg_restore --data-only` cannot replace the row that the first start-up has stored."""

    def test_are_rebuilt_at_the_next_start_up(self, open_lasting: Opener, caplog: pytest.LogCaptureFixture) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        set_position(database, 0)
        caplog.set_level(logging.INFO, "peon")

        with another(database) as opened:
            assert opened.projections.problems() == []
            assert opened.projections.verify() == []
            assert found(opened) == told(*SCENE).state()
        assert [r.getMessage().partition(": ")[2] for r in caplog.records if "rebuilding" in r.getMessage()] == [
            "its tables are filled although it has applied no event"
        ]

    def test_are_not_written_by_an_append(self, database: Database) -> None:
        set_position(database, 0)

        with pytest.raises(ProjectionsOutOfDate, match="must be rebuilt, because its tables are filled"):
            database.events.append_all([renamed("x")])

        database.projections.catch_up()
        database.events.append_all([renamed("x")])
        assert database.projections.verify() == []

    def test_of_a_projection_of_ones_own(self, open_lasting: Opener) -> None:
        database = open_lasting(projections=[WordCount()])
        database.events.append_all(WORDS_SCENE)
        change(database, update(positions).where(positions.c.name == "word_count").values(sequence=0))

        with another(database, projections=[WordCount()]) as opened:
            assert opened.projections.problems() == []
            assert opened.projections.verify() == []

    def test_without_a_row_are_built_again(self, database: Database) -> None:
        change(database, delete(positions))

        database.projections.catch_up()

        assert database.projections.problems() == []
        assert database.projections.verify() == []

    def test_empty_tables_are_not_rebuilt(self, open_empty: Opener, caplog: pytest.LogCaptureFixture) -> None:
        database = open_empty()
        append_alone(database, *SCENE)
        caplog.set_level(logging.INFO, "peon")

        database.projections.catch_up()

        assert found(database) == told(*SCENE).state()
        assert not [record for record in caplog.records if "rebuil" in record.getMessage()]


class TestAPositionBeyondTheLog:
    def test_is_rebuilt_at_the_next_start_up(self, open_lasting: Opener) -> None:
        database = open_lasting()
        database.events.append_all(SCENE)
        set_position(database, len(SCENE) + 100)

        with another(database) as opened:
            assert opened.projections.position() == len(SCENE)
            assert opened.projections.verify() == []

    def test_is_named_by_an_append(self, database: Database) -> None:
        set_position(database, len(SCENE) + 100)

        reason = f"up to {len(SCENE) + 100}, but the log ended at {len(SCENE)}: events were removed"
        with pytest.raises(ProjectionsOutOfDate, match=reason):
            database.events.append_all([renamed("x")])


def test_a_position_in_the_middle_is_found_by_a_verification(open_lasting: Opener) -> None:
    database = open_lasting(projections=[WordCount()])
    database.events.append_all(WORDS_SCENE)
    with database.engine.connect() as connection:
        before = connection.execute(select(words)).all()
    change(database, update(positions).where(positions.c.name == "orchestration").values(sequence=3))

    with another(database, projections=[WordCount()]) as opened:
        assert {difference.table for difference in opened.projections.verify()} == {"projection_problems"}
        opened.projections.rebuild()
        assert opened.projections.verify() == []
        with opened.engine.connect() as connection:
            assert connection.execute(select(words)).all() == before
