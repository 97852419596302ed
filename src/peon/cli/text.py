"""Text and tables for people."""

import re

from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, halves of surrogate pairs, and marks that reverse the direction."""


def printable(text: str, *, limit: int | None = None) -> Text:
    """Returns text in which nothing can control the terminal: such characters are shown as escapes.

    Args:
        limit: Characters after which it is cut, and ends with `…`.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return Text(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text), overflow="fold")


def table_of(*headings: str) -> Table:
    """Returns a table that cuts no value in a narrow terminal."""
    made = Table()
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made
