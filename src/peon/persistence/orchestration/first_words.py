"""The first words of a thread, which a list shows for a thread without a title."""

from peon.persistence.orchestration.nul_characters import with_visible_nul

MAXIMUM_CHARACTERS = 100
"""About what one line of a sidebar shows. The row of a thread is written with every event, so it must stay short."""

_READ_CHARACTERS = 1_000
"""The part of the text in which words are looked for, because a message may have millions of characters."""


def first_words(text: str) -> str | None:
    """Returns the beginning of a text in one line, cut between two words; `None` if it is blank."""
    line = " ".join(text.lstrip()[:_READ_CHARACTERS].split())
    if len(line) > MAXIMUM_CHARACTERS:
        whole, _, rest = line[:MAXIMUM_CHARACTERS].rpartition(" ")
        # Languages without spaces, and long paths, are cut anywhere.
        line = (whole if len(rest) < MAXIMUM_CHARACTERS // 2 else line[: MAXIMUM_CHARACTERS - 1]) + "\u2026"
    return with_visible_nul(line) or None
