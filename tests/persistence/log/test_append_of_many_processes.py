"""Many processes share a database without failures, lost or repeated events, or wrong order."""

import pytest
from helpers.log_processes import append_one_by_one, read_until
from helpers.processes import context, exit_codes_of

from peon.persistence import Database

pytestmark = pytest.mark.postgresql_too("locks")


@pytest.mark.parametrize(
    ("database", "writers", "appends", "readers"),
    [
        ("migrated_sqlite_url", 3, 20, 2),
        ("migrated_postgresql_url", 3, 20, 2),
        pytest.param("migrated_sqlite_url", 8, 2_000, 4, marks=[pytest.mark.slow, pytest.mark.alone]),
        pytest.param("migrated_postgresql_url", 8, 500, 4, marks=[pytest.mark.slow, pytest.mark.alone]),
    ],
)
def test_many_writers_and_readers_lose_repeat_and_reorder_no_event(
    request: pytest.FixtureRequest, database: str, writers: int, appends: int, readers: int
) -> None:
    url = request.getfixturevalue(database).render_as_string(hide_password=False)
    barrier = context.Barrier(writers + readers)
    last = writers * appends
    codes = exit_codes_of(
        [(append_one_by_one, (barrier, url, writer, appends)) for writer in range(writers)]
        + [(read_until, (barrier, url, writers, last)) for _ in range(readers)],
        patience=600,
    )
    assert set(codes) == {0}
    with Database.open(url=url) as opened:
        assert [stored.sequence for stored in opened.events.stream()] == [*range(1, last + 1)]
