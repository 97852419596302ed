"""A message says "1 event" and "2 events"."""

import pytest

from peon.persistence.runtime.counts import counted


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 events"), (1, "1 event"), (2, "2 events"), (1_000, "1,000 events"), (-1, "-1 events")]
)
def test_only_one_has_a_singular_noun(count: int, told: str) -> None:
    assert counted(count, "event") == told


def test_the_verb_agrees_with_the_number() -> None:
    assert [counted(count, "key holds", "keys hold") for count in (1, 2)] == ["1 key holds", "2 keys hold"]
