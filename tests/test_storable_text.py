"""Text that UTF-8 cannot encode, and how it becomes storable."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peon.orchestration import ChunkJoiner, storable_text

WAVE = "\N{WATER WAVE}"
HIGH, LOW = "\ud83c", "\udf0a"
LOST = "\N{REPLACEMENT CHARACTER}"

any_text = st.text(st.characters(exclude_categories=[]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("tide", "tide"),
        ("é\u2028" + WAVE, "é\u2028" + WAVE),
        (HIGH + LOW, WAVE),
        (HIGH, LOST),
        (LOW, LOST),
        (LOW + HIGH, LOST + LOST),
        (HIGH + HIGH + LOW + LOW, LOST + WAVE + LOST),
        ("a" + HIGH + "b", "a" + LOST + "b"),
        ("a\0b", "a\0b"),
        (os.fsdecode(b"caf\xe9.txt"), "caf" + LOST + ".txt"),
    ],
)
def test_text_becomes_storable(text: str, expected: str) -> None:
    assert storable_text(text) == expected


@given(any_text)
def test_any_text_becomes_storable_and_then_stays(text: str) -> None:
    storable = storable_text(text)
    assert storable.encode().decode() == storable
    assert storable_text(storable) == storable


def joined(chunks: list[str]) -> list[str]:
    joiner = ChunkJoiner()
    return [*map(joiner.add, chunks), joiner.end()]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], [""]),
        (["a", "b"], ["a", "b", ""]),
        (["a" + HIGH, LOW + "b"], ["a", WAVE + "b", ""]),
        ([HIGH, LOW], ["", WAVE, ""]),
        ([HIGH, "", LOW], ["", "", WAVE, ""]),
        ([HIGH, "a"], ["", LOST + "a", ""]),
        ([HIGH, HIGH, LOW], ["", LOST, WAVE, ""]),
        ([LOW, "a"], [LOST, "a", ""]),
        (["a" + HIGH], ["a", LOST]),
    ],
)
def test_chunks_are_joined_where_a_pair_was_cut(chunks: list[str], expected: list[str]) -> None:
    assert joined(chunks) == expected


def test_a_joiner_can_be_used_again_after_its_end() -> None:
    joiner = ChunkJoiner()
    assert (joiner.add(HIGH), joiner.end(), joiner.end()) == ("", LOST, "")
    assert joiner.add(LOW) == LOST


@given(st.lists(any_text))
def test_chunks_give_the_text_that_they_would_give_as_a_whole(chunks: list[str]) -> None:
    assert "".join(joined(chunks)) == storable_text("".join(chunks))
