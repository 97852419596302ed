"""The garbage collector is paused during long reads."""

import gc

import pytest

from peon.persistence.runtime.garbage_collection import garbage_collection_paused


@pytest.mark.parametrize(("is_async", "is_paused"), [(False, True), (True, False)])
def test_the_collector_is_paused_only_if_no_other_task_can_run(is_async: bool, is_paused: bool) -> None:
    class Dialect:
        pass

    dialect = Dialect()
    dialect.is_async = is_async  # type: ignore[attr-defined]
    with garbage_collection_paused(dialect):  # type: ignore[arg-type]
        assert gc.isenabled() is not is_paused
    assert gc.isenabled()
